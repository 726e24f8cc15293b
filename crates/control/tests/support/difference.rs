//! How two texts differ, for goldens that say what is special of a case.

use std::fmt::Write as _;

/// The lines in which two texts differ, with those around that say where.
pub(crate) fn difference(from: &str, to: &str) -> String {
    let (a, b): (Vec<&str>, Vec<&str>) = (from.lines().collect(), to.lines().collect());
    // Longest common subsequence.
    let mut length = vec![vec![0_u32; b.len() + 1]; a.len() + 1];
    for i in (0..a.len()).rev() {
        for j in (0..b.len()).rev() {
            length[i][j] =
                if a[i] == b[j] { length[i + 1][j + 1] + 1 } else { length[i + 1][j].max(length[i][j + 1]) };
        }
    }
    let mut lines: Vec<(char, &str)> = Vec::new();
    let (mut i, mut j) = (0, 0);
    while i < a.len() || j < b.len() {
        if i < a.len() && j < b.len() && a[i] == b[j] {
            lines.push((' ', a[i]));
            i += 1;
            j += 1;
        } else if i < a.len() && (j == b.len() || length[i + 1][j] >= length[i][j + 1]) {
            lines.push(('-', a[i]));
            i += 1;
        } else {
            lines.push(('+', b[j]));
            j += 1;
        }
    }
    let mut out = String::new();
    let mut shown = true;
    for (index, (mark, line)) in lines.iter().enumerate() {
        let near =
            lines[index.saturating_sub(1)..(index + 2).min(lines.len())].iter().any(|(mark, _)| *mark != ' ');
        if near {
            let _ = writeln!(out, "{mark}{line}");
        } else if shown {
            out.push_str(" ...\n");
        }
        shown = near;
    }
    out
}

//! Prometheus' text format.

use std::fmt::Write;

use super::Histogram;

/// A page of metrics, as it grows.
#[derive(Debug, Default)]
pub(super) struct Text(String);

impl Text {
    /// Begins a metric. `kind` is `counter`, `gauge` or `histogram`.
    pub(super) fn family(&mut self, name: &str, kind: &str, help: &str) {
        // Writing to a string does not fail.
        let _ = writeln!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }

    /// One value.
    pub(super) fn sample(&mut self, name: &str, labels: &[(&str, &str)], value: f64) {
        self.0.push_str(name);
        for (index, (label, value)) in labels.iter().enumerate() {
            let _ = write!(self.0, "{}{label}=\"", if index == 0 { '{' } else { ',' });
            for character in value.chars() {
                match character {
                    '\\' => self.0.push_str("\\\\"),
                    '"' => self.0.push_str("\\\""),
                    '\n' => self.0.push_str("\\n"),
                    character => self.0.push(character),
                }
            }
            self.0.push('"');
        }
        if !labels.is_empty() {
            self.0.push('}');
        }
        let _ = writeln!(self.0, " {value}");
    }

    /// All of a histogram.
    pub(super) fn histogram(&mut self, name: &str, labels: &[(&str, &str)], histogram: &Histogram) {
        let bucket = format!("{name}_bucket");
        let mut total = 0;
        let bounds = histogram.bounds.iter().map(ToString::to_string).chain(["+Inf".to_owned()]);
        for (bound, count) in bounds.zip(&histogram.counts) {
            total += count;
            let mut labels = labels.to_vec();
            labels.push(("le", &bound));
            self.sample(&bucket, &labels, total as f64);
        }
        self.sample(&format!("{name}_sum"), labels, histogram.sum);
        self.sample(&format!("{name}_count"), labels, total as f64);
    }

    /// A metric with one value and no labels.
    pub(super) fn single(&mut self, name: &str, kind: &str, help: &str, value: f64) {
        self.family(name, kind, help);
        self.sample(name, &[], value);
    }

    /// The page.
    pub(super) fn finish(self) -> String {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use expect_test::expect;

    use super::Text;
    use crate::metrics::{Histogram, WAIT};

    #[test]
    fn the_format() {
        let mut text = Text::default();
        text.single("a", "gauge", "How many.", 3.0);
        text.sample("b", &[("x", "1"), ("y", "a\"b\\c\nd")], 0.5);
        let mut histogram = Histogram::new(&WAIT[..2]);
        histogram.observe(0.2);
        text.histogram("c", &[("x", "1")], &histogram);
        expect![[r#"
            # HELP a How many.
            # TYPE a gauge
            a 3
            b{x="1",y="a\"b\\c\nd"} 0.5
            c_bucket{x="1",le="0.1"} 0
            c_bucket{x="1",le="0.5"} 1
            c_bucket{x="1",le="+Inf"} 1
            c_sum{x="1"} 0.2
            c_count{x="1"} 1
        "#]]
        .assert_eq(&text.finish());
    }
}

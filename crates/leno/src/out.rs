//! What verbs print. Who reads it may have enough (`leno crd | head`): that ends the program as it
//! ends others, without a word and with the exit code that shells give to SIGPIPE.

use std::fmt::Arguments;
use std::io::{ErrorKind, Write};

/// 128 and the signal's number.
const BROKEN_PIPE: i32 = 141;

/// Writes to the standard output; see [`out!`] and [`outln!`].
pub(crate) fn write(text: Arguments<'_>) {
    let mut out = std::io::stdout().lock();
    if let Err(error) = out.write_fmt(text).and_then(|()| out.flush()) {
        if error.kind() == ErrorKind::BrokenPipe {
            std::process::exit(BROKEN_PIPE);
        }
        eprintln!("leno: standard output: {error}");
        std::process::exit(1);
    }
}

/// As `print!`.
macro_rules! out {
    ($($text:tt)*) => { crate::out::write(format_args!($($text)*)) };
}

/// As `println!`.
macro_rules! outln {
    () => { crate::out::write(format_args!("\n")) };
    ($($text:tt)*) => { crate::out::write(format_args!("{}\n", format_args!($($text)*))) };
}

pub(crate) use {out, outln};

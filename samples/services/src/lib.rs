//! The services of Leno's samples.

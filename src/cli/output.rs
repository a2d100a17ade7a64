//! Standard output and standard error of a command, whose readers may leave at any time.

use std::fmt::Arguments;
use std::io::{self, ErrorKind, Write};
use std::process::exit;

/// Prints to standard output. A reader that has gone, such as `head`, ends the program in success, as a program that
/// others don't listen to has nothing more to do; std's macros panic then.
pub(super) fn print(text: Arguments<'_>) {
    let mut out = io::stdout().lock();
    match out.write_fmt(text).and_then(|()| out.flush()) {
        Ok(()) => {}
        Err(error) if error.kind() == ErrorKind::BrokenPipe => exit(0),
        Err(error) => {
            tell(format_args!("kinetoscope: can't write to standard output: {error}\n"));
            exit(1);
        }
    }
}

/// Prints to standard error, if anybody reads that.
pub(super) fn tell(text: Arguments<'_>) {
    // One write a line, so that lines of several processes stay whole.
    let _ = io::stderr().lock().write_all(text.to_string().as_bytes());
}

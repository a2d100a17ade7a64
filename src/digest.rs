//! The SHA-256 of what is too long to be held.

use std::io::{self, ErrorKind, Read};

use sha2::{Digest, Sha256};

/// Adds the bytes that are left in `bytes`, and counts them.
pub(crate) fn digest_rest(bytes: &mut impl Read, digest: &mut Sha256) -> io::Result<u64> {
    let (mut buffer, mut total) = (vec![0; 1 << 20], 0);
    loop {
        match bytes.read(&mut buffer) {
            Ok(0) => return Ok(total),
            Ok(read) => {
                digest.update(&buffer[..read]);
                total += read as u64;
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

//! What fuzz targets reach of this crate, and nobody else: it exists only where they are built.

use bytes::Bytes;

use crate::protos::Lines;

/// The whole lines of a control stream whose bytes come in pieces of this length.
///
/// # Errors
/// A line is too long.
pub fn lines(bytes: &[u8], piece: usize) -> Result<Vec<Bytes>, &'static str> {
    let mut lines = Lines::default();
    let mut found = Vec::new();
    for piece in bytes.chunks(piece) {
        lines.push(piece)?;
        found.extend(std::iter::from_fn(|| lines.pop()));
    }
    Ok(found)
}

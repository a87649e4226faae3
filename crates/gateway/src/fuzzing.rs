//! What fuzz targets reach of this crate, and nobody else: it exists only where they are built.

use crate::sse::Place;

/// After each byte of an event stream whose bytes come in pieces of this length: whether a comment may stand there. Told
/// at the ends of pieces only; elsewhere it is `None`.
pub fn between_events(bytes: &[u8], piece: usize) -> Vec<Option<bool>> {
    let mut place = Place::start();
    let mut told = vec![None; bytes.len()];
    let mut end = 0;
    for piece in bytes.chunks(piece) {
        place.pass(piece);
        end += piece.len();
        if let Some(last) = told.get_mut(end - 1) {
            *last = Some(place.is_between_events());
        }
    }
    told
}

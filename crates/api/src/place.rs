//! Places in lists that are walked in more than one order: opaque texts, bound to the list and the order that they came from.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use sortie_ids::Digest;

const PREFIX: &str = "page_";
/// Bytes of a number, and of the check sum behind all of them.
const NUMBER: usize = 8;

/// The text for a place of the list with this name, which says its order, too. The numbers tell where it is; they are worth
/// nothing to callers, since every list is read within one workspace.
pub fn place_text(list: &str, numbers: &[i64]) -> String {
    let mut bytes: Vec<u8> = numbers.iter().flat_map(|number| number.to_be_bytes()).collect();
    bytes.extend(sum(list, numbers));
    format!("{PREFIX}{}", URL_SAFE_NO_PAD.encode(bytes))
}

/// The numbers in a text that [`place_text`] made for the same list; nothing else has any.
pub fn read_place<const N: usize>(list: &str, text: &str) -> Option<[i64; N]> {
    let length = N.checked_add(1)?.checked_mul(NUMBER)?;
    // Texts of another length are refused before room is made for them.
    let encoded = text.strip_prefix(PREFIX).filter(|encoded| encoded.len() == length.saturating_mul(8).div_ceil(6))?;
    let bytes = URL_SAFE_NO_PAD.decode(encoded).ok()?;
    let (chunks, rest) = bytes.as_chunks::<NUMBER>();
    let (found, numbers) = chunks.split_last()?;
    let numbers: Vec<i64> = numbers.iter().map(|bytes| i64::from_be_bytes(*bytes)).collect();
    let numbers: [i64; N] = numbers.try_into().ok()?;
    (rest.is_empty() && *found == sum(list, &numbers)).then_some(numbers)
}

/// Tells altered places, and those of other lists, from ours.
fn sum(list: &str, numbers: &[i64]) -> [u8; NUMBER] {
    let digest = Digest::of(format!("sortie place {list} {numbers:?}").as_bytes());
    let mut sum = [0; NUMBER];
    for (to, from) in sum.iter_mut().zip(digest.as_bytes()) {
        *to = *from;
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_round_trip_in_their_own_list_only() {
        for numbers in [[0, 0, 0], [1, -2, i64::MAX], [i64::MIN, 7, 1]] {
            let text = place_text("sessions asc", &numbers);
            assert_eq!(read_place("sessions asc", &text), Some(numbers));
            assert_eq!(read_place::<3>("sessions desc", &text), None);
            assert_eq!(read_place::<2>("sessions asc", &text), None);
            assert_eq!(read_place::<4>("sessions asc", &text), None);
        }
    }

    #[test]
    fn altered_places_are_refused() {
        let text = place_text("events", &[3, 4]);
        for at in 0..text.len() {
            let mut bytes = text.clone().into_bytes();
            bytes[at] = if bytes[at] == b'A' { b'B' } else { b'A' };
            let altered = String::from_utf8(bytes).expect("ascii");
            assert_eq!(read_place::<2>("events", &altered), None, "{altered}");
        }
        for bad in ["", "page_", "7", "page_AAAA", &format!("{text}A"), &format!("{text}="), &"page_A".repeat(9999)] {
            assert_eq!(read_place::<2>("events", bad), None);
        }
    }
}

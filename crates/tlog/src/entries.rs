//! Entry bundles: the content of `tile/entries/<N>`.

use crate::tile::TILE_WIDTH;

/// Why entries do not fit a bundle, or bytes are not one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EntriesError {
    /// An entry over 65,535 bytes.
    #[error("entry {0} of the bundle has {1} bytes, the limit is 65535")]
    TooLong(usize, usize),
    /// Not 1 to 256 entries.
    #[error("{0} entries in a bundle, expected 1 to {TILE_WIDTH}")]
    Count(usize),
    /// The bytes end within an entry.
    #[error("the bundle ends within entry {0}")]
    Truncated(usize),
}

/// Entries with a big-endian length of two bytes before each.
pub fn encode_entries<B: AsRef<[u8]>>(entries: &[B]) -> Result<Vec<u8>, EntriesError> {
    if entries.is_empty() || entries.len() > usize::from(TILE_WIDTH) {
        return Err(EntriesError::Count(entries.len()));
    }
    let mut out = Vec::new();
    for (i, entry) in entries.iter().enumerate() {
        let entry = entry.as_ref();
        let length = u16::try_from(entry.len()).map_err(|_| EntriesError::TooLong(i, entry.len()))?;
        out.extend_from_slice(&length.to_be_bytes());
        out.extend_from_slice(entry);
    }
    Ok(out)
}

/// The entries of a bundle.
pub fn decode_entries(mut bytes: &[u8]) -> Result<Vec<&[u8]>, EntriesError> {
    let mut entries = Vec::new();
    while !bytes.is_empty() {
        let i = entries.len();
        if i == usize::from(TILE_WIDTH) {
            return Err(EntriesError::Count(i + 1));
        }
        let (length, rest) = bytes.split_first_chunk::<2>().ok_or(EntriesError::Truncated(i))?;
        let (entry, rest) =
            rest.split_at_checked(usize::from(u16::from_be_bytes(*length))).ok_or(EntriesError::Truncated(i))?;
        entries.push(entry);
        bytes = rest;
    }
    if entries.is_empty() { Err(EntriesError::Count(0)) } else { Ok(entries) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeps_entries() {
        let long = vec![7u8; 65535];
        let entries: Vec<&[u8]> = vec![b"", b"a", &long];
        let bytes = encode_entries(&entries).unwrap();
        assert_eq!(&bytes[..5], [0, 0, 0, 1, b'a']);
        assert_eq!(decode_entries(&bytes).unwrap(), entries);
        for cut in [1, 3, 4, 6, bytes.len() - 1] {
            assert!(matches!(decode_entries(&bytes[..cut]), Err(EntriesError::Truncated(_))), "{cut}");
        }
        assert_eq!(encode_entries(&[vec![0; 65536]]), Err(EntriesError::TooLong(0, 65536)));
        assert_eq!(encode_entries::<&[u8]>(&[]), Err(EntriesError::Count(0)));
        assert_eq!(encode_entries(&vec![b"x"; 257]), Err(EntriesError::Count(257)));
        assert_eq!(decode_entries(&[]), Err(EntriesError::Count(0)));
        assert_eq!(decode_entries(&[0; 2 * 257]), Err(EntriesError::Count(257)));
    }
}

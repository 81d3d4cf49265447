//! Where content is cut so that equal content is cut alike wherever it lies, and how alike two
//! blobs are.
//!
//! A cut depends on the 64 bytes before it alone (a gear hash), so bytes that are inserted shift
//! content without changing how it is cut. Fingerprints are weak on purpose: whoever uses them
//! compares the bytes.

use std::io::{self, Read};

/// No chunk is shorter, but the last.
const MIN_BYTES: usize = 2 << 10;
/// No chunk is longer.
const MAX_BYTES: usize = 64 << 10;
/// A cut is where these bits of the hash are zero: once in 8 KiB.
const MASK: u64 = ((1 << 13) - 1) << 40;
/// Bytes read at a time.
const BLOCK_BYTES: usize = 256 << 10;
/// Features of a sketch.
pub(super) const FEATURES: usize = 16;

/// A piece of content.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Chunk {
    pub(super) offset: u64,
    pub(super) len: u64,
    pub(super) fingerprint: u64,
}

/// For each of some orders of all fingerprints, the first that a blob has. Two blobs agree in about
/// as many of them as they have chunks in common.
pub(super) type Sketch = [u64; FEATURES];

/// Numbers that look random, the same for ever.
const GEAR: [u64; 256] = {
    let (mut table, mut n) = ([0; 256], 0);
    while n < 256 {
        table[n] = mix(n as u64 + 1);
        n += 1;
    }
    table
};

/// The finish of SplitMix64.
const fn mix(number: u64) -> u64 {
    let mut z = number.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Cuts all that `input` reads. `seen` gets every block as it was read.
pub(super) fn cut(input: &mut dyn Read, seen: &mut dyn FnMut(&[u8]) -> io::Result<()>) -> io::Result<Vec<Chunk>> {
    let mut chunks = Vec::new();
    let mut block = vec![0; BLOCK_BYTES];
    let (mut offset, mut len, mut hash, mut fingerprint) = (0_u64, 0_usize, 0_u64, 0_u64);
    loop {
        let n = super::read_full(input, &mut block)?;
        seen(&block[..n])?;
        for byte in &block[..n] {
            hash = (hash << 1).wrapping_add(GEAR[usize::from(*byte)]);
            fingerprint = (fingerprint ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3);
            len += 1;
            if (len >= MIN_BYTES && hash & MASK == 0) || len == MAX_BYTES {
                chunks.push(Chunk { offset, len: len as u64, fingerprint: mix(fingerprint) });
                offset += len as u64;
                (len, fingerprint) = (0, 0);
            }
        }
        if n < block.len() {
            break;
        }
    }
    if len > 0 {
        chunks.push(Chunk { offset, len: len as u64, fingerprint: mix(fingerprint) });
    }
    Ok(chunks)
}

/// The sketch of a blob that is cut into `chunks`.
pub(super) fn sketch(chunks: &[Chunk]) -> Sketch {
    let mut sketch = [u64::MAX; FEATURES];
    for chunk in chunks {
        for (n, least) in sketch.iter_mut().enumerate() {
            *least = (*least).min(mix(chunk.fingerprint ^ mix(n as u64 + 1)));
        }
    }
    sketch
}

#[cfg(test)]
mod tests {
    use super::*;

    fn noise(seed: u64, len: usize) -> Vec<u8> {
        (0..=len as u64 / 8).flat_map(|n| mix(seed << 32 | n).to_le_bytes()).take(len).collect()
    }

    fn cut_all(bytes: &[u8]) -> Vec<Chunk> {
        let mut seen = 0;
        let chunks = cut(&mut &*bytes, &mut |block| {
            seen += block.len();
            Ok(())
        });
        assert_eq!(seen, bytes.len());
        chunks.unwrap()
    }

    #[test]
    fn chunks_cover_everything_within_their_bounds() {
        for bytes in [noise(1, 3_000_000), vec![0; 300_000], noise(2, 100), Vec::new()] {
            let chunks = cut_all(&bytes);
            let mut at = 0;
            for (n, chunk) in chunks.iter().enumerate() {
                assert_eq!(chunk.offset, at);
                at += chunk.len;
                assert!(chunk.len <= MAX_BYTES as u64);
                assert!(chunk.len >= MIN_BYTES as u64 || n + 1 == chunks.len());
            }
            assert_eq!(at, bytes.len() as u64);
        }
        let average = 3_000_000 / cut_all(&noise(1, 3_000_000)).len();
        assert!((7 << 10..14 << 10).contains(&average), "{average}");
    }

    #[test]
    fn bytes_that_are_inserted_change_the_chunks_around_them_alone() {
        let bytes = noise(3, 2_000_000);
        let mut longer = bytes.clone();
        longer.splice(700_000..700_000, noise(4, 333));
        let (one, two) = (cut_all(&bytes), cut_all(&longer));
        let known: std::collections::HashSet<u64> = one.iter().map(|chunk| chunk.fingerprint).collect();
        let new = two.iter().filter(|chunk| !known.contains(&chunk.fingerprint)).count();
        assert!((1..=4).contains(&new), "{new} of {}", two.len());
        let alike = |a: &Sketch, b: &Sketch| a.iter().zip(b).filter(|(a, b)| a == b).count();
        assert!(alike(&sketch(&one), &sketch(&two)) >= FEATURES - 3);
        assert_eq!(alike(&sketch(&one), &sketch(&cut_all(&noise(5, 2_000_000)))), 0);
    }
}

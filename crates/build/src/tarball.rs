//! Writes layer archives. One tree gives one sequence of bytes, for ever: build ABI 1.
//!
//! POSIX ustar, one entry per name in byte order, directories with a trailing `/`; uid and gid 0
//! without names, mtime the epoch, device numbers 0. A path or link target that ustar cannot hold
//! gets a pax record before its entry. The end is two zero blocks and nothing more. Not
//! compressed. A hard link is written as a file of its own.

use std::fs::File;
use std::io::{self, Read, Write};

use adamant_digest::{Digest, DigestMismatch, Hasher};

use crate::layout::{Content, Layout, Node};

const BLOCK: usize = 512;
/// What fits into the twelve bytes of an octal size.
const MAX_SIZE: u64 = 0o77_777_777_777;

/// Why a layer could not be written.
#[derive(Debug, thiserror::Error)]
pub enum LayerError {
    /// Reading a file or writing the layer.
    #[error("`{path}`: {source}")]
    Io {
        /// The entry.
        path: String,
        /// What happened.
        #[source]
        source: io::Error,
    },
    /// The file is not what was measured when it was taken.
    #[error("`{path}` changed while it was packed: {source}")]
    Changed {
        /// The entry.
        path: String,
        /// Both digests.
        #[source]
        source: DigestMismatch,
    },
    /// Larger than an entry can say.
    #[error("`{path}` has {size} bytes; a layer holds files up to {MAX_SIZE} bytes")]
    TooLarge {
        /// The entry.
        path: String,
        /// Its size.
        size: u64,
    },
}

/// Writes every name of `layout` that `wanted` accepts.
pub(crate) fn write(
    layout: &Layout,
    wanted: impl Fn(&str) -> bool,
    epoch: u64,
    out: &mut impl Write,
) -> Result<(), LayerError> {
    for (path, node) in layout.iter().filter(|(path, _)| wanted(path)) {
        entry(path, node, epoch, out)?;
    }
    let wrap = |source| LayerError::Io { path: "end of the layer".to_owned(), source };
    out.write_all(&[0; 2 * BLOCK]).map_err(wrap)?;
    out.flush().map_err(wrap)
}

fn entry(path: &str, node: &Node, epoch: u64, out: &mut impl Write) -> Result<(), LayerError> {
    let wrap = |source| LayerError::Io { path: path.to_owned(), source };
    let (name, mode, size, kind, target) = match node {
        Node::Dir { mode } => (format!("{path}/"), *mode, 0, b'5', ""),
        Node::File { mode, size, .. } => (path.to_owned(), *mode, *size, b'0', ""),
        Node::Link { target } => (path.to_owned(), 0o777, 0, b'2', target.as_str()),
    };
    if size > MAX_SIZE {
        return Err(LayerError::TooLarge { path: path.to_owned(), size });
    }
    let place = split(&name);
    let mut records = Vec::new();
    if place.is_none() {
        record(&mut records, "path", &name);
    }
    if target.len() > 100 {
        record(&mut records, "linkpath", target);
    }
    if !records.is_empty() {
        let extended = header(("", "pax"), 0o644, records.len() as u64, epoch, b'x', "");
        out.write_all(&extended).map_err(wrap)?;
        out.write_all(&records).map_err(wrap)?;
        pad(records.len() as u64, out).map_err(wrap)?;
    }
    let target = if target.len() > 100 { "" } else { target };
    out.write_all(&header(place.unwrap_or(("", "long")), mode, size, epoch, kind, target)).map_err(wrap)?;
    if let Node::File { digest, content, .. } = node {
        copy(path, *digest, size, content, out)?;
        pad(size, out).map_err(wrap)?;
    }
    Ok(())
}

/// Copies the bytes of a file and checks them on the way.
fn copy(path: &str, digest: Digest, size: u64, content: &Content, out: &mut impl Write) -> Result<(), LayerError> {
    let wrap = |source| LayerError::Io { path: path.to_owned(), source };
    let found = match content {
        Content::Bytes(bytes) => {
            out.write_all(bytes).map_err(wrap)?;
            Digest::of(bytes)
        }
        Content::File(file) => {
            // One byte more than announced shows that a file grew.
            let mut reader = File::open(file).map_err(wrap)?.take(size + 1);
            let (mut hasher, mut copied, mut buffer) = (Hasher::new(), 0, vec![0; 128 << 10]);
            loop {
                let read = reader.read(&mut buffer).map_err(wrap)?;
                if read == 0 {
                    break;
                }
                copied += read as u64;
                hasher.update(&buffer[..read]);
                if copied <= size {
                    out.write_all(&buffer[..read]).map_err(wrap)?;
                }
            }
            if copied == size { hasher.finish() } else { Digest::of(b"another length") }
        }
    };
    if found == digest {
        Ok(())
    } else {
        let source = DigestMismatch { expected: digest, found };
        Err(LayerError::Changed { path: path.to_owned(), source })
    }
}

/// ustar's prefix and name of a path, if it fits.
fn split(path: &str) -> Option<(&str, &str)> {
    if path.len() <= 100 {
        return Some(("", path));
    }
    let trimmed = path.trim_end_matches('/');
    // The leftmost `/` that leaves a name of at most 100 bytes: one answer for each path.
    trimmed
        .match_indices('/')
        .map(|(at, _)| (&path[..at], &path[at + 1..]))
        .find(|(_, name)| name.len() <= 100)
        .filter(|(prefix, _)| !prefix.is_empty() && prefix.len() <= 155)
}

/// A pax record, `<length> <key>=<value>\n`, where the length counts itself.
fn record(records: &mut Vec<u8>, key: &str, value: &str) {
    let rest = key.len() + value.len() + 3;
    let mut length = rest + 1;
    while rest + length.to_string().len() != length {
        length = rest + length.to_string().len();
    }
    records.extend_from_slice(format!("{length} {key}={value}\n").as_bytes());
}

fn header(place: (&str, &str), mode: u32, size: u64, epoch: u64, kind: u8, target: &str) -> [u8; BLOCK] {
    let mut block = [0; BLOCK];
    let mut put = |at: usize, bytes: &[u8]| block[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, place.1.as_bytes());
    put(100, format!("{mode:07o}\0").as_bytes());
    put(108, b"0000000\0");
    put(116, b"0000000\0");
    put(124, format!("{size:011o}\0").as_bytes());
    put(136, format!("{epoch:011o}\0").as_bytes());
    put(148, b"        ");
    put(156, &[kind]);
    put(157, target.as_bytes());
    put(257, b"ustar\x0000");
    put(329, b"0000000\0");
    put(337, b"0000000\0");
    put(345, place.0.as_bytes());
    let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    block
}

fn pad(size: u64, out: &mut impl Write) -> io::Result<()> {
    let over = usize::try_from(size % BLOCK as u64).unwrap_or(0);
    if over == 0 { Ok(()) } else { out.write_all(&[0; BLOCK][over..]) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::archive::{Stage, layout, read_tar};
    use adamant_fetch::archive::Limits;

    fn sample() -> Layout {
        let mut sample = Layout::default();
        sample.insert("bin/a", Node::bytes(0o755, *b"a")).unwrap();
        sample.insert("bin/b", Node::Link { target: "a".into() }).unwrap();
        let long = format!("{}/{}/name", "d".repeat(120), "e".repeat(90));
        sample.insert(&long, Node::bytes(0o644, *b"long")).unwrap();
        sample.insert(&"f".repeat(140), Node::bytes(0o644, *b"")).unwrap();
        sample.insert("link", Node::Link { target: "t".repeat(150) }).unwrap();
        sample
    }

    #[test]
    fn what_is_written_is_read_back() {
        let mut bytes = Vec::new();
        write(&sample(), |_| true, 315_532_800, &mut bytes).unwrap();
        assert_eq!(bytes.len() % BLOCK, 0);
        let dir = tempfile::tempdir().unwrap();
        let items = read_tar(&bytes[..], &Stage::new(dir.path()), &Limits::default()).unwrap();
        assert_eq!(layout(items, false).unwrap().tree().unwrap(), sample().tree().unwrap());
    }

    #[test]
    fn golden() {
        let mut bytes = Vec::new();
        write(&sample(), |_| true, 315_532_800, &mut bytes).unwrap();
        assert_eq!(
            Digest::of(&bytes).to_string(),
            "sha256:7e27cbf15939e5645d7eefb6fc4ae5cd8c796d003892ff44f5d934567e5f8928",
            "the bytes of layers changed: that needs a new build ABI"
        );
    }

    #[test]
    fn a_record_counts_itself() {
        for length in 80..120 {
            let mut records = Vec::new();
            record(&mut records, "path", &"x".repeat(length));
            let text = String::from_utf8(records.clone()).unwrap();
            assert_eq!(text.split(' ').next(), Some(records.len().to_string().as_str()));
        }
    }

    #[test]
    fn a_file_that_changed_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("x");
        for now in [&b"12345"[..], b"1234", b"123456"] {
            std::fs::write(&file, now).unwrap();
            let mut layout = Layout::default();
            let content = Content::File(file.clone());
            layout.insert("x", Node::File { mode: 0o644, digest: Digest::of(b"abcde"), size: 5, content }).unwrap();
            let result = write(&layout, |_| true, 0, &mut Vec::new());
            assert!(matches!(result, Err(LayerError::Changed { .. })), "{result:?}");
        }
    }
}

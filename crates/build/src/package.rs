//! What one `.deb` brings: its files, and whose files it may replace.

use std::collections::BTreeSet;
use std::io::{self, Read};

use crate::abi;
use crate::archive::{ArchiveError, ArchiveLimits, Item, Stage, decompress, fill, read_tar};
use crate::layout::Node;

/// A package, unpacked into a stage.
#[derive(Debug, Clone, Default)]
pub(crate) struct Unpacked {
    pub(crate) items: Vec<Item>,
    /// Names in its `Replaces` field.
    pub(crate) replaces: BTreeSet<String>,
}

/// Bytes of a control file at most.
const MAX_CONTROL: u64 = 4 << 20;

/// Reads a `.deb` to its last byte. Spec: deb(5).
pub(crate) fn read(mut reader: impl Read, stage: &Stage, limits: ArchiveLimits) -> Result<Unpacked, ArchiveError> {
    let bad = |what: &str| ArchiveError::Read(io::Error::new(io::ErrorKind::InvalidData, what.to_owned()));
    let mut magic = [0; 8];
    reader.read_exact(&mut magic).map_err(ArchiveError::Read)?;
    if &magic != b"!<arch>\n" {
        return Err(bad("not a Debian package: no ar archive"));
    }
    let (mut unpacked, mut data) = (Unpacked::default(), false);
    loop {
        let mut header = [0; 60];
        let filled = fill(&mut reader, &mut header).map_err(ArchiveError::Read)?;
        if filled == 0 {
            break;
        }
        if filled < header.len() || &header[58..] != b"`\n" {
            return Err(bad("not a Debian package: a member header is damaged"));
        }
        let field = |range| str::from_utf8(&header[range]).map(|text| text.trim_end().trim_end_matches('/'));
        let name = field(0..16).unwrap_or_default().to_owned();
        let size: u64 = field(48..58).ok().and_then(|text| text.parse().ok()).ok_or_else(|| bad("no member size"))?;
        let mut member = (&mut reader).take(size);
        if name.starts_with("control.tar") {
            unpacked.replaces = replaces(decompress(&mut member).map_err(ArchiveError::Read)?)?;
        } else if name.starts_with("data.tar") {
            if data {
                return Err(bad("not a Debian package: two data members"));
            }
            data = true;
            if name.ends_with(".zst") || name.ends_with(".bz2") || name.ends_with(".lzma") {
                return Err(bad(&format!("the package's {name} is compressed in a way Debian bookworm does not use")));
            }
            let reader = decompress(&mut member).map_err(ArchiveError::Read)?;
            unpacked.items = read_tar(reader, stage, limits, abi::keeps)?;
            for item in &mut unpacked.items {
                strip_links(item);
            }
        }
        let rest = io::copy(&mut member, &mut io::sink()).map_err(ArchiveError::Read)?;
        if member.limit() > 0 {
            return Err(bad(&format!("the package ends inside of {name}, after {rest} bytes")));
        }
        if size % 2 == 1 {
            fill(&mut reader, &mut [0]).map_err(ArchiveError::Read)?;
        }
    }
    if data { Ok(unpacked) } else { Err(bad("not a Debian package: no data member")) }
}

/// Links never carry anything but their text; a trailing slash is dropped as the kernel would
/// ignore it.
fn strip_links(item: &mut Item) {
    if let Node::Link { target } = &mut item.node
        && target.len() > 1
    {
        target.truncate(target.trim_end_matches('/').len().max(1));
    }
}

fn replaces(reader: impl Read) -> Result<BTreeSet<String>, ArchiveError> {
    let mut archive = tar::Archive::new(reader);
    for entry in archive.entries().map_err(ArchiveError::Read)? {
        let entry = entry.map_err(ArchiveError::Read)?;
        if matches!(&*entry.path_bytes(), b"./control" | b"control") {
            let mut text = String::new();
            entry.take(MAX_CONTROL).read_to_string(&mut text).map_err(ArchiveError::Read)?;
            return Ok(field(&text, "Replaces"));
        }
    }
    Ok(BTreeSet::new())
}

/// The package names of a relationship field, continuation lines included.
fn field(control: &str, name: &str) -> BTreeSet<String> {
    let mut value = String::new();
    let mut inside = false;
    for line in control.lines() {
        if line.starts_with([' ', '\t']) {
            if inside {
                value.push_str(line);
            }
        } else {
            let own = line.split_once(':').filter(|(key, _)| key.eq_ignore_ascii_case(name));
            inside = own.is_some();
            value.push_str(own.map_or("", |(_, rest)| rest));
        }
    }
    value
        .split(',')
        .filter_map(|one| one.trim().split([' ', '(', ':']).next())
        .filter(|name| !name.is_empty())
        .map(str::to_owned)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_relationship_fields() {
        let control = "Package: a\nReplaces: b (<< 1.0), c:any,\n d\nDescription: x\n Replaces: no\n";
        assert_eq!(field(control, "Replaces").into_iter().collect::<Vec<_>>(), ["b", "c", "d"]);
    }

    #[test]
    fn refuses_what_is_no_package() {
        let dir = tempfile::tempdir().unwrap();
        let stage = Stage::new(dir.path());
        for bytes in [&b""[..], b"!<arch>\n", b"!<arch>\ngarbage", b"PK\x03\x04 something else"] {
            assert!(read(bytes, &stage, ArchiveLimits::default()).is_err());
        }
        let cut = b"!<arch>\ndata.tar        0           0     0     100644  100       `\nshort";
        assert!(read(&cut[..], &stage, ArchiveLimits::default()).is_err());
    }
}

//! `.deb` files: an `ar` archive with `data.tar`. deb(5).
//!
//! Only the files are read. Maintainer scripts and control data are skipped unread.

use std::io::{self, Read};

use crate::archive::{self, ArchiveError, Entry, Limits};

/// Why a package was refused.
#[derive(Debug, thiserror::Error)]
pub enum DebError {
    /// Not an `ar` archive of the shape of a package.
    #[error("not a Debian package: {0}")]
    Format(&'static str),
    /// Its files are packed in a way this version does not read.
    #[error(
        "its files are packed as `{0}`, known are data.tar, data.tar.gz and data.tar.xz: use a Debian release that packs with xz, or an older version of the package"
    )]
    Packing(String),
    /// Its files.
    #[error("its files: {0}")]
    Archive(#[from] ArchiveError),
    /// Reading.
    #[error("it cannot be read: {0}")]
    Io(#[from] io::Error),
}

/// Largest member before the data, in bytes.
const MAX_CONTROL: u64 = 64 << 20;

/// Calls `visit` for every file, directory and link of a package, in order. Paths are relative
/// and cannot leave; the texts of symbolic links are as packed, absolute ones among them, and
/// must not be followed when writing.
pub fn read(
    mut reader: impl Read,
    limits: &Limits,
    visit: &mut dyn FnMut(&Entry, &mut dyn Read) -> io::Result<()>,
) -> Result<(), DebError> {
    let mut magic = [0; 8];
    reader.read_exact(&mut magic).map_err(|_| DebError::Format("too short"))?;
    if &magic != b"!<arch>\n" {
        return Err(DebError::Format("no ar archive"));
    }
    for place in 0..8 {
        let (name, size) = header(&mut reader)?;
        match (place, name.as_str()) {
            (0, "debian-binary") => {
                let mut version = Vec::new();
                (&mut reader).take(size.min(100)).read_to_end(&mut version)?;
                if size > 100 || !version.starts_with(b"2.") {
                    return Err(DebError::Format("not format 2"));
                }
                skip(&mut reader, size & 1)?;
            }
            (0, _) => return Err(DebError::Format("it does not begin with debian-binary")),
            (_, "data.tar" | "data.tar.gz" | "data.tar.xz") => {
                let mut data = (&mut reader).take(size);
                let mut visit = |entry: &Entry, bytes: &mut dyn Read| visit(entry, bytes).map_err(ArchiveError::from);
                return Ok(archive::walk(&mut data, limits, &mut visit)?);
            }
            (_, name) if name.starts_with("data.tar") => return Err(DebError::Packing(name.to_owned())),
            _ if size > MAX_CONTROL => return Err(DebError::Format("a member before the data is too large")),
            _ => skip(&mut reader, size + (size & 1))?,
        }
    }
    Err(DebError::Format("no data among its first members"))
}

fn header(reader: &mut impl Read) -> Result<(String, u64), DebError> {
    let mut header = [0; 60];
    reader.read_exact(&mut header).map_err(|_| DebError::Format("it ends before its data"))?;
    let text =
        |range: std::ops::Range<usize>| std::str::from_utf8(&header[range]).map(str::trim_end).unwrap_or_default();
    let size = text(48..58).parse().map_err(|_| DebError::Format("a member without length"))?;
    if &header[58..] != b"`\n" {
        return Err(DebError::Format("a damaged member header"));
    }
    Ok((text(0..16).trim_end_matches('/').to_owned(), size))
}

fn skip(reader: &mut impl Read, bytes: u64) -> Result<(), DebError> {
    if io::copy(&mut reader.take(bytes), &mut io::sink())? == bytes {
        Ok(())
    } else {
        Err(DebError::Format("it ends before its data"))
    }
}

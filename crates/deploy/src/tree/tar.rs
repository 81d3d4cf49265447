//! A tar reader with bounds: no header makes it allocate more than it allows itself.

use std::io::{self, Read};

/// Longest long name or extended header, in bytes.
const MAX_EXTENSION: u64 = 64 * 1024;

/// What a member is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Kind {
    File,
    Dir,
    Symlink(String),
    Hardlink(String),
}

/// One member; its bytes are read from the reader afterwards.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Member {
    pub(crate) path: String,
    pub(crate) mode: u32,
    pub(crate) kind: Kind,
}

/// Reads members one after the other; as [`Read`] it gives the bytes of the current one.
pub(crate) struct TarReader<R> {
    inner: R,
    left: u64,
    padding: u64,
}

impl<R: Read> TarReader<R> {
    pub(crate) fn new(inner: R) -> Self {
        Self { inner, left: 0, padding: 0 }
    }

    /// The reader behind, at the end of the archive.
    pub(crate) fn into_inner(self) -> R {
        self.inner
    }

    /// The next member, or `None` at the end. The rest of the current one is skipped.
    pub(crate) fn next(&mut self) -> io::Result<Option<Member>> {
        let (mut long_path, mut long_link) = (None, None);
        loop {
            self.skip()?;
            let Some(header) = self.header()? else { return Ok(None) };
            let size = header.entry_size()?;
            let kind = header.entry_type();
            self.left = size;
            self.padding = (512 - size % 512) % 512;
            match kind.as_byte() {
                b'L' => long_path = Some(self.extension()?),
                b'K' => long_link = Some(self.extension()?),
                b'x' => {
                    let (path, link) = self.pax(true)?;
                    long_path = path.or(long_path);
                    long_link = link.or(long_link);
                }
                b'g' => drop(self.pax(false)?),
                _ => {
                    let path = match long_path {
                        Some(path) => path,
                        None => text(&header.path_bytes())?,
                    };
                    let link = || match (long_link, header.link_name_bytes()) {
                        (Some(link), _) => Ok(link),
                        (None, Some(link)) => text(&link),
                        (None, None) => Err(bad(format!("link `{path}` has no target"))),
                    };
                    let kind = match kind.as_byte() {
                        b'0' | 0 | b'7' => Kind::File,
                        b'5' => Kind::Dir,
                        b'2' => Kind::Symlink(link()?),
                        b'1' => Kind::Hardlink(link()?),
                        b'3' | b'4' => return Err(bad(format!("`{path}` is a device"))),
                        b'6' => return Err(bad(format!("`{path}` is a pipe"))),
                        other => return Err(bad(format!("`{path}` has the unknown type {other}"))),
                    };
                    if kind != Kind::File && size > 0 {
                        return Err(bad(format!("`{path}` is no file but has {size} bytes")));
                    }
                    return Ok(Some(Member { mode: header.mode()?, path, kind }));
                }
            }
        }
    }

    fn skip(&mut self) -> io::Result<()> {
        let rest = self.left + self.padding;
        let skipped = io::copy(&mut self.inner.by_ref().take(rest), &mut io::sink())?;
        if skipped != rest {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        (self.left, self.padding) = (0, 0);
        Ok(())
    }

    fn header(&mut self) -> io::Result<Option<::tar::Header>> {
        let mut header = ::tar::Header::new_old();
        let block = header.as_mut_bytes();
        self.inner.read_exact(block)?;
        if block.iter().all(|b| *b == 0) {
            return Ok(None);
        }
        // POSIX pax: the sum of all bytes with the checksum field taken as eight spaces.
        let sum: u32 =
            block.iter().enumerate().map(|(i, b)| if (148..156).contains(&i) { 32 } else { u32::from(*b) }).sum();
        if header.cksum()? != sum {
            return Err(bad("a header has a wrong sum".to_owned()));
        }
        Ok(Some(header))
    }

    fn extension_bytes(&mut self) -> io::Result<Vec<u8>> {
        if self.left > MAX_EXTENSION {
            return Err(bad(format!("a name of {} bytes, at most {MAX_EXTENSION} are allowed", self.left)));
        }
        let mut bytes = Vec::new();
        self.read_to_end(&mut bytes)?;
        Ok(bytes)
    }

    fn extension(&mut self) -> io::Result<String> {
        let bytes = self.extension_bytes()?;
        let end = bytes.iter().position(|b| *b == 0).unwrap_or(bytes.len());
        text(&bytes[..end])
    }

    /// `path` and `linkpath` of an extended header; what else changes the meaning is refused.
    fn pax(&mut self, local: bool) -> io::Result<(Option<String>, Option<String>)> {
        let bytes = self.extension_bytes()?;
        let (mut rest, mut path, mut link) = (&bytes[..], None, None);
        while !rest.is_empty() {
            let malformed = || bad("an extended header is malformed".to_owned());
            let space = rest.iter().take(20).position(|b| *b == b' ').ok_or_else(malformed)?;
            let length: usize = text(&rest[..space])?.parse().map_err(|_| malformed())?;
            if length <= space + 1 || length > rest.len() || rest[length - 1] != b'\n' {
                return Err(malformed());
            }
            let record = &rest[space + 1..length - 1];
            rest = &rest[length..];
            let equals = record.iter().position(|b| *b == b'=').ok_or_else(malformed)?;
            let (key, value) = (&record[..equals], &record[equals + 1..]);
            match key {
                b"path" if local => path = Some(text(value)?),
                b"linkpath" if local => link = Some(text(value)?),
                b"path" | b"linkpath" | b"size" => {
                    return Err(bad("an extended header changes size or all names".to_owned()));
                }
                _ if key.starts_with(b"GNU.sparse") => return Err(bad("sparse files are not read".to_owned())),
                _ => {}
            }
        }
        Ok((path, link))
    }
}

impl<R: Read> Read for TarReader<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let most = usize::try_from(self.left).unwrap_or(usize::MAX).min(buffer.len());
        if most == 0 {
            return Ok(0);
        }
        let read = self.inner.read(&mut buffer[..most])?;
        if read == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.left -= read as u64;
        Ok(read)
    }
}

fn bad(reason: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, reason)
}

fn text(bytes: &[u8]) -> io::Result<String> {
    String::from_utf8(bytes.to_vec()).map_err(|_| bad(format!("`{}` is not UTF-8", String::from_utf8_lossy(bytes))))
}

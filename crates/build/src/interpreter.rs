//! What the kernel loads to run a program: an ELF file's interpreter or a script's.
//!
//! Programs are a build's output and hostile. Every read is bounded, and what cannot be read as
//! 64-bit little-endian ELF or as a script is nobody's business here.

use std::fs::File;
use std::os::unix::fs::FileExt as _;

use crate::layout::{Content, Node};

/// Longest path of an interpreter, as the kernel has it.
const MAX_PATH: usize = 4096;
/// Bytes of a script's first line that the kernel reads.
const MAX_LINE: usize = 256;
/// Bytes of an ELF header, and of a program header below.
const HEADER: usize = 64;
const PROGRAM_HEADER: usize = 56;
/// Most program headers looked at; real programs have about ten.
const MAX_PROGRAM_HEADERS: u64 = 128;
/// `p_type` of the header that names the interpreter.
const PT_INTERP: u32 = 3;

/// What a program cannot run without.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Interpreter {
    /// The dynamic loader that an ELF program names.
    Loader(String),
    /// The program in the first line of a script.
    Script(String),
}

impl Interpreter {
    /// Of a file; `None` if it needs none or its bytes are something else.
    pub(crate) fn of(node: &Node) -> Option<Self> {
        let Node::File { content, .. } = node else { return None };
        let source = match content {
            Content::Bytes(bytes) => Source::Bytes(bytes),
            // Packing reads it again and says what is wrong.
            Content::File(path) => Source::File(File::open(path).ok()?),
        };
        if source.read(0, 2)? == b"#!" { script(&source) } else { loader(&source) }
    }

    /// Where it is in the image.
    pub(crate) fn path(&self) -> &str {
        match self {
            Self::Loader(path) | Self::Script(path) => path,
        }
    }

    /// How a program needs it, and what to do if it is not there.
    pub(crate) fn words(&self) -> (&'static str, &'static str) {
        match self {
            Self::Loader(path) if path.contains("ld-linux") => {
                ("is linked dynamically and needs", "add `runtime = [\"libc6\"]`, or link it statically")
            }
            Self::Loader(_) => {
                ("is linked dynamically and needs", "add the package with it to `runtime`, or link it statically")
            }
            Self::Script(_) => {
                ("is a script for", "add the package with it to `runtime`, or correct the script's first line")
            }
        }
    }
}

/// Bytes at positions, wherever they are.
enum Source<'a> {
    Bytes(&'a [u8]),
    File(File),
}

impl Source<'_> {
    /// At most `length` bytes from `at`; fewer at the end, `None` if they cannot be read.
    fn read(&self, at: u64, length: usize) -> Option<Vec<u8>> {
        match self {
            Self::Bytes(bytes) => {
                let rest = bytes.get(usize::try_from(at).ok()?..).unwrap_or_default();
                Some(rest.iter().take(length).copied().collect())
            }
            Self::File(file) => {
                let mut buffer = vec![0; length];
                let mut filled = 0;
                while let Some(rest) = buffer.get_mut(filled..).filter(|rest| !rest.is_empty()) {
                    match file.read_at(rest, at.checked_add(filled as u64)?) {
                        Ok(0) => break,
                        Ok(read) => filled += read,
                        Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                        Err(_) => return None,
                    }
                }
                buffer.truncate(filled);
                Some(buffer)
            }
        }
    }
}

fn script(source: &Source<'_>) -> Option<Interpreter> {
    let head = source.read(2, MAX_LINE - 2)?;
    let line = head.split(|byte| *byte == b'\n').next()?;
    let mut words = line.split(|byte| matches!(byte, b' ' | b'\t')).filter(|word| !word.is_empty());
    let path = String::from_utf8(words.next()?.to_vec()).ok()?;
    // `#!/bin/sh\r` of a file from elsewhere: the kernel looks for that name.
    Some(Interpreter::Script(path))
}

fn loader(source: &Source<'_>) -> Option<Interpreter> {
    let header = source.read(0, HEADER)?;
    // Magic, 64 bits, little endian.
    if !header.starts_with(b"\x7fELF\x02\x01") {
        return None;
    }
    let (start, size, count) = (u64_at(&header, 32)?, u16_at(&header, 54)?, u64::from(u16_at(&header, 56)?));
    if usize::from(size) != PROGRAM_HEADER {
        return None;
    }
    for index in 0..count.min(MAX_PROGRAM_HEADERS) {
        let at = start.checked_add(index * PROGRAM_HEADER as u64)?;
        let header = source.read(at, PROGRAM_HEADER)?;
        if u32_at(&header, 0)? == PT_INTERP {
            let (at, size) = (u64_at(&header, 8)?, u64_at(&header, 32)?);
            let size = usize::try_from(size).ok().filter(|size| *size <= MAX_PATH)?;
            let text = source.read(at, size)?;
            let path = text.split(|byte| *byte == 0).next()?;
            let path = String::from_utf8(path.to_vec()).ok().filter(|path| !path.is_empty())?;
            return Some(Interpreter::Loader(path));
        }
    }
    None
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_le_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(bytes.get(at..at + 8)?.try_into().ok()?))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// The smallest ELF file: a header, a program header of no interest, perhaps an interpreter.
    pub(crate) fn elf(interpreter: Option<&str>) -> Vec<u8> {
        let mut bytes = vec![0; HEADER + 2 * PROGRAM_HEADER];
        bytes[..6].copy_from_slice(b"\x7fELF\x02\x01");
        bytes[32..40].copy_from_slice(&(HEADER as u64).to_le_bytes());
        bytes[54..56].copy_from_slice(&u16::try_from(PROGRAM_HEADER).unwrap().to_le_bytes());
        bytes[56..58].copy_from_slice(&2u16.to_le_bytes());
        bytes[HEADER] = 6;
        if let Some(path) = interpreter {
            let (at, end) = (HEADER + PROGRAM_HEADER, bytes.len() as u64);
            bytes[at] = 3;
            bytes[at + 8..at + 16].copy_from_slice(&end.to_le_bytes());
            bytes[at + 32..at + 40].copy_from_slice(&(path.len() as u64 + 1).to_le_bytes());
            bytes.extend_from_slice(path.as_bytes());
            bytes.push(0);
        }
        bytes
    }

    fn of(bytes: &[u8]) -> Option<Interpreter> {
        let small = Interpreter::of(&Node::bytes(0o755, bytes));
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("program");
        std::fs::write(&path, bytes).unwrap();
        let digest = adamant_digest::Digest::of(bytes);
        let node = Node::File { mode: 0o755, digest, size: bytes.len() as u64, content: Content::File(path) };
        assert_eq!(Interpreter::of(&node), small, "memory and disk differ");
        small
    }

    #[test]
    fn scripts() {
        let script = |path: &str| Some(Interpreter::Script(path.to_owned()));
        for (text, expect) in [
            ("#!/bin/sh\necho", script("/bin/sh")),
            ("#! \t/usr/bin/env python3\n", script("/usr/bin/env")),
            ("#!/bin/sh", script("/bin/sh")),
            ("#!\n/bin/sh", None),
            ("#!", None),
            ("#", None),
            ("", None),
            ("echo", None),
        ] {
            assert_eq!(of(text.as_bytes()), expect, "{text:?}");
        }
    }

    #[test]
    fn programs() {
        assert_eq!(of(&elf(None)), None);
        let whole = elf(Some("/lib/ld.so"));
        assert_eq!(of(&whole), Some(Interpreter::Loader("/lib/ld.so".to_owned())));
        let real = Interpreter::of(&Node::bytes(0o755, std::fs::read("/proc/self/exe").unwrap()));
        assert!(real.is_none_or(|loader| loader.path().starts_with('/')));
        // Cut anywhere, or with any byte wrong: an answer, and no panic.
        for end in 0..whole.len() {
            let _ = of(&whole[..end]);
        }
        for at in 0..whole.len() {
            let mut bytes = whole.clone();
            bytes[at] = 0xff;
            let _ = Interpreter::of(&Node::bytes(0o755, bytes));
        }
        let mut other = whole;
        other[4] = 1;
        assert_eq!(of(&other), None, "32 bits");
    }
}

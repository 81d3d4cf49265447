//! Where two builds of one step part, why they probably do, and what helps.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};

use crate::layout::{Content, Layout, Node};

/// Bytes shown of each side at most.
const SHOWN: usize = 160;
/// Bytes looked at around the first difference.
const WINDOW: u64 = 512;
/// Text files up to this size are compared as sets of lines.
const MAX_SORTED: u64 = 8 << 20;

/// The first difference between two builds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Divergence {
    /// Path in the image.
    pub path: String,
    /// What differs, with place and both sides.
    pub detail: String,
    /// What probably causes it.
    pub cause: String,
    /// What helps.
    pub cure: String,
}

impl std::fmt::Display for Divergence {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "/{}: {}; probably {}; {}", self.path, self.detail, self.cause, self.cure)
    }
}

/// Compares in the order of paths; `None` if nothing differs.
pub(crate) fn explain(first: &Layout, second: &Layout) -> io::Result<Option<Divergence>> {
    let paths: std::collections::BTreeSet<&str> = first.iter().chain(second.iter()).map(|(path, _)| path).collect();
    for path in paths {
        let (detail, (cause, cure)) = match (first.node(path), second.node(path)) {
            (Some(a), Some(b)) => match node(a, b)? {
                Some(found) => found,
                None => continue,
            },
            (a, _) => {
                let which = if a.is_some() { "first" } else { "second" };
                (format!("exists in the {which} build alone"), NAME)
            }
        };
        return Ok(Some(Divergence { path: path.to_owned(), detail, cause: cause.into(), cure: cure.into() }));
    }
    Ok(None)
}

type Reason = (&'static str, &'static str);

const NAME: Reason = ("a file name made from the clock, a process id or a random number", "give the file a fixed name");
const MODE: Reason = ("permissions that depend on the order of the build", "set them with chmod");
const CLOCK: Reason =
    ("the time of the build (`__DATE__`, `__TIME__`, `date`)", "leave it out or take it from SOURCE_DATE_EPOCH");
const GZIP: Reason = ("the time that gzip writes into its header", "compress with `gzip -n`");
const AR: Reason = ("times or owners in a static library", "make it with `ar D` and `ranlib -D`");
const ZIP: Reason = ("times in a zip archive", "set the times of its files to SOURCE_DATE_EPOCH and use `zip -X`");
const ORDER: Reason = (
    "the order of a directory listing or of parallel work: both hold the same lines",
    "sort the list, as with `sort` or make's `$(sort $(wildcard …))`",
);
const RANDOM_NAME: Reason =
    ("the random name of a temporary file", "compile to named object files, and give `-frandom-seed` or strip symbols");
const ADDRESS: Reason = (
    "an address of the building program, which changes from run to run",
    "do not write pointers into outputs or sort by them",
);
const CPUS: Reason = ("the number of processors seen", "do not write it into outputs; give a fixed number of jobs");
const UNKNOWN: Reason = (
    "the clock, a random number, or the order of parallel work",
    "build twice by hand and compare with `diffoscope`; fix seeds and sort lists",
);

fn node(a: &Node, b: &Node) -> io::Result<Option<(String, Reason)>> {
    Ok(match (a, b) {
        (Node::Dir { mode: a }, Node::Dir { mode: b }) => {
            (a != b).then(|| (format!("a directory of mode {a:o} and {b:o}"), MODE))
        }
        (Node::Link { target: a }, Node::Link { target: b }) => {
            (a != b).then(|| (format!("a link to `{a}` and to `{b}`"), NAME))
        }
        (
            Node::File { mode: am, digest: ad, content: a, size: an },
            Node::File { mode: bm, digest: bd, content: b, size: bn },
        ) => {
            if ad == bd {
                (am != bm).then(|| (format!("a file of mode {am:o} and {bm:o}"), MODE))
            } else {
                Some(files(a, b, *an.min(bn), *an.max(bn))?)
            }
        }
        (a, b) => Some((format!("{} and {}", kind(a), kind(b)), NAME)),
    })
}

const fn kind(node: &Node) -> &'static str {
    match node {
        Node::Dir { .. } => "a directory",
        Node::File { .. } => "a file",
        Node::Link { .. } => "a link",
    }
}

fn files(a: &Content, b: &Content, shorter: u64, longer: u64) -> io::Result<(String, Reason)> {
    let Some((offset, line)) = first_difference(a, b)? else {
        return Ok(("the same bytes now; it changed while it was compared".to_owned(), UNKNOWN));
    };
    let start = offset.saturating_sub(WINDOW);
    let (left, right) = (window(a, start)?, window(b, start)?);
    let head = window(a, 0)?;
    let at = usize::try_from(offset - start).unwrap_or(0);
    let text = !left.contains(&0) && !right.contains(&0) && !head.contains(&0);
    if text {
        let reason = if longer <= MAX_SORTED && same_lines(a, b)? {
            ORDER
        } else {
            reason(&line_around(&left, at), &line_around(&right, at))
        };
        let detail = format!(
            "line {line} is `{}` in the first build and `{}` in the second",
            line_around(&left, at),
            line_around(&right, at)
        );
        return Ok((detail, reason));
    }
    let reason = if head.starts_with(&[0x1f, 0x8b]) && (4..8).contains(&offset) {
        GZIP
    } else if head.starts_with(b"!<arch>\n") && header_field(&left, at) {
        AR
    } else if head.starts_with(b"PK\x03\x04") {
        ZIP
    } else {
        reason(&strings(&left, at), &strings(&right, at))
    };
    let detail = if offset == shorter {
        format!("one is the beginning of the other: they part at offset {offset}")
    } else {
        let (l, r) = (strings(&left, at), strings(&right, at));
        let near = if l.is_empty() && r.is_empty() { String::new() } else { format!(", near `{l}` and `{r}`") };
        let hex = |bytes: &[u8]| hex(&bytes[at.min(bytes.len())..bytes.len().min(at + 8)]);
        format!("the bytes at offset {offset} are {} and {}{near}", hex(&left), hex(&right))
    };
    Ok((detail, reason))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |text, byte| format!("{text}{byte:02x}"))
}

/// Whether the place is in a member header of an ar archive, whose end mark is near.
fn header_field(bytes: &[u8], at: usize) -> bool {
    bytes[at.min(bytes.len())..]
        .iter()
        .take(60)
        .zip(bytes[at.min(bytes.len())..].iter().skip(1))
        .any(|pair| pair == (&b'`', &b'\n'))
}

/// Guesses from what stands at the place where two texts part.
fn reason(a: &str, b: &str) -> Reason {
    let either = |test: fn(&str) -> bool| test(a) && test(b);
    if either(has_time)
        || either(has_date)
        || either(|text| digit_runs(text).any(|run| run.len() == 10 && run.starts_with('1')))
    {
        CLOCK
    } else if either(|text| text.contains("/tmp/") || text.contains("cc") && text.contains(".o")) {
        RANDOM_NAME
    } else if either(|text| text.contains("0x7f") || text.contains("0x55") || text.contains("0x56")) {
        ADDRESS
    } else if either(|text| {
        let lower = text.to_lowercase();
        ["cpu", "proc", "jobs", "threads", "cores"].iter().any(|word| lower.contains(word))
    }) {
        CPUS
    } else {
        UNKNOWN
    }
}

fn digit_runs(text: &str) -> impl Iterator<Item = &str> {
    text.split(|c: char| !c.is_ascii_digit())
}

/// `12:34:56` somewhere.
fn has_time(text: &str) -> bool {
    text.as_bytes().windows(8).any(|w| {
        w.iter().enumerate().all(|(i, byte)| if matches!(i, 2 | 5) { *byte == b':' } else { byte.is_ascii_digit() })
    })
}

/// `2026-11-23` or a year after a month's name.
fn has_date(text: &str) -> bool {
    let iso = text.as_bytes().windows(10).any(|w| {
        w.iter().enumerate().all(|(i, byte)| if matches!(i, 4 | 7) { *byte == b'-' } else { byte.is_ascii_digit() })
    });
    let months = ["Jan ", "Feb ", "Mar ", "Apr ", "May ", "Jun ", "Jul ", "Aug ", "Sep ", "Oct ", "Nov ", "Dec "];
    iso || months.iter().any(|month| text.contains(month)) && digit_runs(text).any(|run| run.len() == 4)
}

/// The printable text around a place, at most [`SHOWN`] bytes.
fn strings(bytes: &[u8], at: usize) -> String {
    let printable = |byte: &u8| (0x20..0x7f).contains(byte);
    let at = at.min(bytes.len());
    let before = bytes[..at].iter().rev().take(SHOWN / 2).take_while(|byte| printable(byte)).count();
    let after = bytes[at..].iter().take(SHOWN / 2).take_while(|byte| printable(byte)).count();
    if before + after < 4 {
        String::new()
    } else {
        String::from_utf8_lossy(&bytes[at - before..at + after]).into_owned()
    }
}

/// The line that a place lies in, at most [`SHOWN`] bytes of it.
fn line_around(bytes: &[u8], at: usize) -> String {
    let at = at.min(bytes.len());
    let start = bytes[..at].iter().rposition(|byte| *byte == b'\n').map_or(0, |found| found + 1);
    let end = bytes[at..].iter().position(|byte| *byte == b'\n').map_or(bytes.len(), |found| at + found);
    let start = start.max(at.saturating_sub(SHOWN / 2));
    String::from_utf8_lossy(&bytes[start..end.min(start + SHOWN)]).into_owned()
}

fn open(content: &Content) -> io::Result<Box<dyn Read + '_>> {
    Ok(match content {
        Content::Bytes(bytes) => Box::new(&bytes[..]),
        Content::File(path) => Box::new(io::BufReader::with_capacity(128 << 10, File::open(path)?)),
    })
}

/// Offset of the first difference and its line, from 1.
fn first_difference(a: &Content, b: &Content) -> io::Result<Option<(u64, u64)>> {
    let (mut a, mut b) = (open(a)?, open(b)?);
    let (mut left, mut right) = (vec![0; 64 << 10], vec![0; 64 << 10]);
    let (mut offset, mut line) = (0_u64, 1_u64);
    loop {
        let (n, m) = (crate::archive::fill(&mut a, &mut left)?, crate::archive::fill(&mut b, &mut right)?);
        let common = n.min(m);
        let differs = (0..common).find(|&i| left[i] != right[i]).or((n != m).then_some(common));
        let until = differs.unwrap_or(common);
        line += left[..until].iter().map(|byte| u64::from(*byte == b'\n')).sum::<u64>();
        if differs.is_some() {
            return Ok(Some((offset + until as u64, line)));
        }
        if n == 0 {
            return Ok(None);
        }
        offset += n as u64;
    }
}

/// Up to two windows of bytes from `start`.
fn window(content: &Content, start: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    match content {
        Content::Bytes(all) => {
            let start = usize::try_from(start).unwrap_or(usize::MAX).min(all.len());
            (&all[start..]).take(2 * WINDOW).read_to_end(&mut bytes)?;
        }
        Content::File(path) => {
            let mut file = File::open(path)?;
            file.seek(SeekFrom::Start(start))?;
            file.take(2 * WINDOW).read_to_end(&mut bytes)?;
        }
    }
    Ok(bytes)
}

fn same_lines(a: &Content, b: &Content) -> io::Result<bool> {
    let read = |content: &Content| -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        open(content)?.take(MAX_SORTED).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    let (a, b) = (read(a)?, read(b)?);
    let sorted = |bytes: &[u8]| {
        let mut lines: Vec<Vec<u8>> = bytes.split(|byte| *byte == b'\n').map(<[u8]>::to_vec).collect();
        lines.sort();
        lines
    };
    Ok(a.len() == b.len() && sorted(&a) == sorted(&b))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn part(a: &[u8], b: &[u8]) -> Divergence {
        let layout = |bytes: &[u8]| {
            let mut layout = Layout::default();
            layout.insert("app/same", Node::bytes(0o644, *b"same")).unwrap();
            layout.insert("app/x", Node::bytes(0o644, bytes)).unwrap();
            layout
        };
        explain(&layout(a), &layout(b)).unwrap().unwrap()
    }

    #[test]
    fn names_line_and_cause_of_text() {
        let found = part(b"one\nat 12:00:01\n", b"one\nat 12:00:09\n");
        assert_eq!(found.path, "app/x");
        assert_eq!(found.detail, "line 2 is `at 12:00:01` in the first build and `at 12:00:09` in the second");
        assert_eq!((&*found.cause, &*found.cure), CLOCK);
        assert_eq!(part(b"a\nb\nc\n", b"c\nb\na\n").cause, ORDER.0);
        assert_eq!(part(b"built with 8 CPUs", b"built with 2 CPUs").cause, CPUS.0);
        assert_eq!(part(b"seed 4", b"seed 5").cause, UNKNOWN.0);
    }

    #[test]
    fn names_offset_and_strings_of_binaries() {
        let found = part(b"\x7fELF\0\0\0\0/tmp/ccAAAA.o\0", b"\x7fELF\0\0\0\0/tmp/ccBBBB.o\0");
        assert_eq!(found.cause, RANDOM_NAME.0);
        assert!(found.detail.contains("offset 15") && found.detail.contains("/tmp/ccAAAA.o"), "{}", found.detail);
        assert_eq!(part(b"\x1f\x8b\x08\0\x01\0\0\0xx", b"\x1f\x8b\x08\0\x02\0\0\0xx").cause, GZIP.0);
    }

    #[test]
    fn names_missing_files_modes_and_kinds() {
        let mut a = Layout::default();
        a.insert("x", Node::bytes(0o644, *b"")).unwrap();
        let found = explain(&a, &Layout::default()).unwrap().unwrap();
        assert_eq!(found.detail, "exists in the first build alone");
        let mut b = Layout::default();
        b.insert("x", Node::bytes(0o755, *b"")).unwrap();
        assert_eq!(explain(&a, &b).unwrap().unwrap().detail, "a file of mode 644 and 755");
        b.insert("x", Node::Link { target: "y".into() }).unwrap();
        assert_eq!(explain(&a, &b).unwrap().unwrap().detail, "a file and a link");
        assert_eq!(explain(&a, &a).unwrap(), None);
    }
}

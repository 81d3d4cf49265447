//! Finds in outputs what two builds on one machine on one day agree on, and two builds elsewhere
//! or tomorrow do not: today's date, the clock, names of the host.

use std::fs::File;
use std::io::{self, Read};

use crate::archive::fill;
use crate::layout::{Content, Node};

/// Bytes looked at in one go.
const CHUNK: usize = 256 << 10;
/// Findings reported for one file.
const MAX_FINDINGS: usize = 4;
/// Names so common that finding them says nothing.
const COMMON: [&str; 14] = [
    "admin",
    "adamant",
    "build",
    "builder",
    "debian",
    "docker",
    "linux",
    "local",
    "localhost",
    "nobody",
    "runner",
    "server",
    "ubuntu",
    "worker",
];

/// What to look for, apart from the clock.
#[derive(Debug, Clone, Default)]
pub struct Host {
    /// The host's name.
    pub hostname: String,
    /// The user the server runs as.
    pub user: String,
    /// The data directory.
    pub data: String,
}

/// What was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trace {
    /// The date of the build.
    Date,
    /// The seconds since 1970 of the build.
    Clock,
    /// The data directory of the host.
    DataPath,
    /// The host's name.
    HostName,
    /// The user's name.
    UserName,
}

impl Trace {
    /// Whether an artifact with it is refused. Names can occur by chance, the rest cannot.
    pub const fn refused(self) -> bool {
        matches!(self, Self::Date | Self::Clock | Self::DataPath)
    }

    const fn as_str(self) -> &'static str {
        match self {
            Self::Date => "today's date",
            Self::Clock => "the time of the build in seconds since 1970",
            Self::DataPath => "the path of the server's data directory",
            Self::HostName => "the name of this host",
            Self::UserName => "the name of the user the server runs as",
        }
    }
}

/// One place in one output.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// The file, as a path in the image.
    pub path: String,
    /// What it holds.
    pub trace: Trace,
    /// The text that was recognized.
    pub text: String,
    /// Bytes before it.
    pub offset: u64,
    /// Its line, from 1, if the file is text up to there.
    pub line: Option<u64>,
}

impl std::fmt::Display for Finding {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.path)?;
        match self.line {
            Some(line) => write!(f, ", line {line}")?,
            None => write!(f, ", offset {}", self.offset)?,
        }
        write!(f, " holds {}, `{}`", self.trace.as_str(), self.text)
    }
}

/// What one build must not have left in its outputs.
#[derive(Debug, Clone)]
pub(crate) struct Canary {
    needles: Vec<(Trace, Vec<u8>)>,
    /// For each byte, the needles that begin with it.
    first: Vec<Vec<usize>>,
    longest: usize,
    clock: (u64, u64),
}

impl Canary {
    /// For a build that ran from `started` to `finished`, both in seconds since 1970.
    pub(crate) fn new(host: &Host, started: u64, finished: u64) -> Self {
        let mut needles = Vec::new();
        let days = started / 86_400..=finished.max(started) / 86_400;
        for day in days.take(3) {
            needles.extend(date_forms(day).into_iter().map(|form| (Trace::Date, form.into_bytes())));
        }
        for (trace, name, shortest) in
            [(Trace::HostName, &host.hostname, 5), (Trace::UserName, &host.user, 5), (Trace::DataPath, &host.data, 6)]
        {
            if name.len() >= shortest && !COMMON.contains(&name.as_str()) {
                needles.push((trace, name.clone().into_bytes()));
            }
        }
        let mut first = vec![Vec::new(); 256];
        for (index, (_, needle)) in needles.iter().enumerate() {
            first[usize::from(needle[0])].push(index);
        }
        let longest = needles.iter().map(|(_, needle)| needle.len()).max().unwrap_or(0).max(12);
        Self { needles, first, longest, clock: (started, finished.max(started)) }
    }

    /// Looks through one output.
    pub(crate) fn scan(&self, path: &str, node: &Node) -> io::Result<Vec<Finding>> {
        let Node::File { content, .. } = node else { return Ok(Vec::new()) };
        match content {
            Content::Bytes(bytes) => self.read(path, &mut &bytes[..]),
            Content::File(file) => self.read(path, &mut File::open(file)?),
        }
    }

    fn read(&self, path: &str, reader: &mut impl Read) -> io::Result<Vec<Finding>> {
        let mut findings: Vec<Finding> = Vec::new();
        // One byte of the past, then what a needle may need of the future.
        let keep = self.longest + 1;
        let mut buffer = vec![0; CHUNK + keep + 1];
        let (mut filled, mut base, mut lines, mut text) = (0, 0_u64, 1_u64, true);
        let mut start = 0;
        loop {
            let read = fill(reader, &mut buffer[filled..])?;
            filled += read;
            let last = filled < buffer.len();
            let end = if last { filled } else { filled - keep };
            for at in start..end {
                if let Some((trace, length)) = self.at(&buffer[..filled], at) {
                    let repeated = findings.iter().any(|finding| finding.trace == trace);
                    if !repeated && findings.len() < MAX_FINDINGS {
                        findings.push(Finding {
                            path: path.to_owned(),
                            trace,
                            text: String::from_utf8_lossy(&buffer[at..at + length]).into_owned(),
                            offset: base + at as u64,
                            line: text.then_some(lines),
                        });
                    }
                }
                lines += u64::from(buffer[at] == b'\n');
                text &= buffer[at] != 0;
            }
            if last {
                return Ok(findings);
            }
            // Keep one byte before the next position, for the boundary of a word.
            buffer.copy_within(end - 1..filled, 0);
            base += end as u64 - 1;
            filled -= end - 1;
            start = 1;
        }
    }

    fn at(&self, bytes: &[u8], at: usize) -> Option<(Trace, usize)> {
        let before = at.checked_sub(1).map(|i| bytes[i]);
        for &index in &self.first[usize::from(bytes[at])] {
            let (trace, needle) = &self.needles[index];
            if !bytes[at..].starts_with(needle) {
                continue;
            }
            let after = bytes.get(at + needle.len()).copied();
            let apart = |byte: Option<u8>| match trace {
                Trace::DataPath => true,
                Trace::Date | Trace::Clock => byte.is_none_or(|byte| !byte.is_ascii_digit()),
                Trace::HostName | Trace::UserName => {
                    byte.is_none_or(|byte| !byte.is_ascii_alphanumeric() && !matches!(byte, b'-' | b'_'))
                }
            };
            if apart(before) && apart(after) {
                return Some((*trace, needle.len()));
            }
        }
        self.seconds(bytes, at, before)
    }

    /// A number of ten digits between the start and the end of the build.
    fn seconds(&self, bytes: &[u8], at: usize, before: Option<u8>) -> Option<(Trace, usize)> {
        if !bytes[at].is_ascii_digit() || before.is_some_and(|byte| byte.is_ascii_digit()) {
            return None;
        }
        let digits = bytes[at..].iter().take(11).take_while(|byte| byte.is_ascii_digit()).count();
        let number: u64 = str::from_utf8(&bytes[at..at + digits]).ok()?.parse().ok()?;
        let inside = digits == 10 && (self.clock.0..=self.clock.1).contains(&number);
        inside.then_some((Trace::Clock, digits))
    }
}

const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];

/// The forms in which programs write a date.
fn date_forms(day: u64) -> Vec<String> {
    let (y, m, d) = civil(day);
    let month = MONTHS.get(usize::try_from(m - 1).unwrap_or(0)).copied().unwrap_or("January");
    let short = &month[..3];
    let mut forms = vec![
        format!("{y:04}-{m:02}-{d:02}"),
        format!("{y:04}/{m:02}/{d:02}"),
        format!("{y:04}.{m:02}.{d:02}"),
        format!("{y:04}{m:02}{d:02}"),
        format!("{d:02}.{m:02}.{y:04}"),
        format!("{d:02}/{m:02}/{y:04}"),
        format!("{m:02}/{d:02}/{y:04}"),
        format!("{d:02}-{m:02}-{y:04}"),
        format!("{short} {d:2} {y:04}"),
        format!("{short} {d:02} {y:04}"),
        format!("{short} {d}, {y:04}"),
        format!("{month} {d}, {y:04}"),
        format!("{d} {short} {y:04}"),
        format!("{d:02} {short} {y:04}"),
        format!("{d:02}-{short}-{y:04}"),
        format!("{d} {month} {y:04}"),
    ];
    // `date`'s own form has the time between the month and the year.
    forms.push(format!("{} {short} {d:2}", weekday(day)));
    forms.push(format!("{}, {d:02} {short}", weekday(day)));
    forms.sort();
    forms.dedup();
    forms
}

fn weekday(day: u64) -> &'static str {
    // 1970-01-01 was a Thursday.
    ["Thu", "Fri", "Sat", "Sun", "Mon", "Tue", "Wed"][usize::try_from(day % 7).unwrap_or(0)]
}

/// Year, month and day of a number of days since 1970-01-01 (proleptic Gregorian calendar).
pub(crate) fn civil(day: u64) -> (u64, u64, u64) {
    // Years begin in March here, so that the leap day is the last of its year.
    let shifted = day + 719_468;
    let era = shifted / 146_097;
    let of_era = shifted % 146_097;
    let year = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let march = (5 * of_year + 2) / 153;
    let day = of_year - (153 * march + 2) / 5 + 1;
    let month = if march < 10 { march + 3 } else { march - 9 };
    (year + era * 400 + u64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 2026-11-23 23:00:00 UTC, a Monday.
    const NOW: u64 = 1_795_474_800;

    fn find(bytes: &[u8]) -> Vec<Finding> {
        let host = Host { hostname: "buildhost7".into(), user: "build".into(), data: "/srv/adamant-data".into() };
        Canary::new(&host, NOW, NOW + 60).scan("/app/x", &Node::bytes(0o644, bytes)).unwrap()
    }

    #[test]
    fn knows_the_calendar() {
        assert_eq!(civil(0), (1970, 1, 1));
        assert_eq!(civil(NOW / 86_400), (2026, 11, 23));
        assert_eq!(civil(11_016), (2000, 2, 29));
        assert_eq!(weekday(NOW / 86_400), "Mon");
    }

    #[test]
    fn finds_dates_in_many_forms() {
        for text in [
            "built 2026-11-23",
            "Nov 23 2026",
            "23 Nov 2026",
            "November 23, 2026",
            "v20261123",
            "Mon Nov 23 23:01:02 UTC 2026",
            "Mon, 23 Nov",
            "23.11.2026",
            "2026/11/23",
        ] {
            let found = find(text.as_bytes());
            assert_eq!(found.first().map(|finding| finding.trace), Some(Trace::Date), "{text}");
        }
        for text in ["2026-11-24", "Nov 22 2026", "120261123", "202611234", "1980-01-01", "Jan  1 1980"] {
            assert_eq!(find(text.as_bytes()), [], "{text}");
        }
    }

    #[test]
    fn names_line_or_offset() {
        let found = find(b"one\ntwo\nof Nov 23 2026\n");
        assert_eq!(found[0].to_string(), "/app/x, line 3 holds today's date, `Nov 23 2026`");
        let found = find(b"\x7fELF\0\0\nNov 23 2026\0");
        assert_eq!(found[0].to_string(), "/app/x, offset 7 holds today's date, `Nov 23 2026`");
    }

    #[test]
    fn finds_the_clock_and_the_host_but_not_common_names() {
        assert_eq!(find(b"t=1795474830;")[0].trace, Trace::Clock);
        assert_eq!(find(b"t=1795474930;"), []);
        assert_eq!(find(b"on buildhost7.")[0].trace, Trace::HostName);
        assert_eq!(find(b"on buildhost77"), []);
        assert_eq!(find(b"/srv/adamant-data/work")[0].trace, Trace::DataPath);
        assert_eq!(find(b"user build on build"), []);
        assert!(!Trace::HostName.refused() && Trace::Date.refused());
    }

    #[test]
    fn finds_across_chunks() {
        for shift in 0..40 {
            let mut bytes = vec![b'.'; CHUNK - 20 + shift];
            bytes.extend_from_slice(b"Nov 23 2026");
            bytes.extend_from_slice(&vec![b'.'; CHUNK]);
            let found = find(&bytes);
            assert_eq!(found.len(), 1, "{shift}");
            assert_eq!(found[0].offset, (CHUNK - 20 + shift) as u64);
        }
    }
}

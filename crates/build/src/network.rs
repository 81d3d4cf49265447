//! Tells from a failed step's output that it wanted the network, and what from it.
//!
//! A step has a network without routes and without names, so programs fail in the words they have
//! for that. Reading those words is a courtesy to the reader of the error; nothing rests on it.

/// What a step asked the network for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    /// Host name or address, if it was said.
    pub host: Option<String>,
    /// Path on it, or what else was asked for.
    pub path: Option<String>,
    /// The line that says so.
    pub line: String,
}

impl std::fmt::Display for Wanted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match (&self.host, &self.path) {
            (Some(host), Some(path)) => write!(f, "{host}{path}"),
            (Some(host), None) => write!(f, "{host}"),
            (None, _) => write!(f, "an unnamed host (`{}`)", self.line.trim()),
        }
    }
}

/// Words of curl, wget, git, cargo, pip, npm, go and the C library.
const WORDS: [&str; 17] = [
    "could not resolve host",
    "couldn't resolve host",
    "unable to resolve host",
    "temporary failure in name resolution",
    "temporary failure resolving",
    "name or service not known",
    "nodename nor servname",
    "network is unreachable",
    "network unreachable",
    "no route to host",
    "attempting to make an http request",
    "failed to establish a new connection",
    "getaddrinfo eai_again",
    "getaddrinfo enotfound",
    "getaddrinfo() thread failed",
    "no such host",
    "no address associated with hostname",
];

/// Lines before the tell-tale one that may name the address.
const LOOK_BACK: usize = 12;

/// Looks through the last lines of a failed step.
pub(crate) fn wanted<S: AsRef<str>>(lines: &[S]) -> Option<Wanted> {
    let (at, line) = lines.iter().enumerate().rev().find_map(|(at, line)| {
        let lower = line.as_ref().to_lowercase();
        WORDS.iter().any(|word| lower.contains(word)).then_some((at, line.as_ref()))
    })?;
    let near = lines[at.saturating_sub(LOOK_BACK)..lines.len().min(at + 3)].iter().rev().map(AsRef::as_ref);
    let address = url(line).or_else(|| near.clone().find_map(url));
    let (host, path) = match (address, named(line)) {
        (Some((host, path)), None) => (Some(host), path),
        (Some((host, path)), Some(named)) if host == named => (Some(host), path),
        (_, Some(named)) => (Some(named), None),
        (None, None) => (near.clone().find_map(named), None),
    };
    Some(Wanted { host, path, line: line.chars().take(300).collect() })
}

/// Host and path of the first address in a line.
fn url(line: &str) -> Option<(String, Option<String>)> {
    let (_, rest) = ["https://", "http://", "git://", "ssh://"].iter().find_map(|scheme| line.split_once(scheme))?;
    let end = rest.find(|c: char| c.is_whitespace() || "'\"`()<>,;‘’”“".contains(c)).unwrap_or(rest.len());
    let address = rest[..end].trim_end_matches([':', '.']);
    let (host, path) = address.split_once('/').map_or((address, None), |(host, path)| (host, Some(format!("/{path}"))));
    // No credentials and no port in what is shown.
    let host = host.rsplit('@').next()?.split(':').next()?;
    is_host(host).then(|| (host.to_owned(), path))
}

/// A host named beside the words, as resolvers do: `… host: example.org`, `host='example.org'`.
fn named(line: &str) -> Option<String> {
    let lower = line.to_lowercase();
    let after = [
        "resolve host: ",
        "resolve host address ",
        "host='",
        "host=\"",
        "eai_again ",
        "enotfound ",
        "lookup ",
        "resolving '",
    ];
    after
        .iter()
        .find_map(|word| {
            // `to_lowercase` may move bytes; only then is `get` empty-handed.
            let rest = line.get(lower.find(word)? + word.len()..)?;
            let host = rest.trim_start_matches(['‘', '\'', '"', '`']);
            let end = host.find(|c: char| !(c.is_ascii_alphanumeric() || matches!(c, '.' | '-'))).unwrap_or(host.len());
            let host = host[..end].trim_end_matches('.');
            is_host(host).then(|| host.to_owned())
        })
        .or_else(|| {
            // `bash: files.example.org: Temporary failure in name resolution`
            let words = ["temporary failure in name resolution", "name or service not known"];
            let before = line.get(..words.iter().find_map(|word| lower.find(word))?)?;
            let host = before.trim_end_matches([':', ' ']).rsplit([' ', ':', '\'', '"']).next()?;
            is_host(host).then(|| host.to_owned())
        })
}

fn is_host(text: &str) -> bool {
    !text.is_empty()
        && text.len() <= 253
        && text.contains('.')
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_host_and_path() {
        for (text, expect) in [
            ("curl: (6) Could not resolve host: example.org", "example.org"),
            (
                "--2026-11-23 23:00:00--  https://example.org/a/b.tar.gz\nResolving example.org... failed: Temporary \
                 failure in name resolution.\nwget: unable to resolve host address ‘example.org’",
                "example.org/a/b.tar.gz",
            ),
            (
                "fatal: unable to access 'https://git.example.org/x/y/': Could not resolve host: git.example.org",
                "git.example.org/x/y/",
            ),
            (
                "error: failed to download from `https://static.example.org/crates/serde/1.0.1/download`\n\nCaused \
                 by:\n  attempting to make an HTTP request, but --offline was specified",
                "static.example.org/crates/serde/1.0.1/download",
            ),
            (
                "WARNING: Retrying (Retry(total=4)) after connection broken by 'NewConnectionError(\
                 \"HTTPSConnection(host='pypi.example.org', port=443): Failed to establish a new connection\")'",
                "pypi.example.org",
            ),
            (
                "npm error request to https://user:secret@npm.example.org:8443/left-pad failed, reason: getaddrinfo \
                 EAI_AGAIN npm.example.org",
                "npm.example.org/left-pad",
            ),
            ("bash: line 1: files.example.org: Temporary failure in name resolution", "files.example.org"),
            ("dial tcp: lookup proxy.example.org: no such host", "proxy.example.org"),
        ] {
            let lines: Vec<&str> = text.lines().collect();
            assert_eq!(wanted(&lines).map(|wanted| wanted.to_string()).as_deref(), Some(expect), "{text}");
        }
    }

    #[test]
    fn an_unnamed_host_is_said_to_be_unnamed() {
        let wanted = wanted(&["connect: Network is unreachable"]).unwrap();
        assert_eq!(wanted.to_string(), "an unnamed host (`connect: Network is unreachable`)");
    }

    #[test]
    fn other_failures_are_not_the_network() {
        assert_eq!(wanted(&["see https://example.org/help", "main.c:3: error: expected ;"]), None);
        assert_eq!(wanted::<&str>(&[]), None);
    }
}

//! What a pushing client asks for. Spec: git, gitprotocol-pack(5), "Pushing Data To a Server".

use std::collections::HashSet;

use crate::body::Body;
use crate::git::one_line;
use crate::packet::Packet;
use crate::refs::is_ref;
use crate::{Oid, ServeError};

/// The most packets before the pack.
const LINES: usize = 1024;

/// One ref a client wants changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Command {
    /// What the client believes it is at.
    pub(crate) old: Option<Oid>,
    /// What it shall be at; `None`: deleted.
    pub(crate) new: Option<Oid>,
    /// Full name, as sent.
    pub(crate) name: String,
    /// Why it is refused whatever the pack holds.
    pub(crate) refused: Option<String>,
}

/// Everything before the pack.
#[derive(Debug, Default)]
pub(crate) struct Request {
    pub(crate) commands: Vec<Command>,
    /// Why the whole push is refused.
    pub(crate) refused: Option<String>,
    pub(crate) report: bool,
    pub(crate) side_band: bool,
}

impl Request {
    /// Reads up to the flush packet. No commands: the client only tried whether it may push.
    pub(crate) async fn read(body: &mut Body, refs_per_push: usize) -> Result<Self, ServeError> {
        let mut request = Self::default();
        let mut names = HashSet::new();
        for _ in 0..LINES {
            let line = match body.packet().await? {
                None if request.commands.is_empty() && request.refused.is_none() => return Ok(request),
                None => return Err(malformed("it ends before the pack")),
                Some(Packet::Flush) => {
                    if request.commands.len() > refs_per_push {
                        request.refused =
                            Some(format!("at most {refs_per_push} refs in one push: push fewer at a time"));
                    }
                    return Ok(request);
                }
                Some(Packet::Delimiter | Packet::End) => return Err(malformed("it has sections")),
                Some(Packet::Data(line)) => line,
            };
            let text = std::str::from_utf8(&line).map_err(|_| malformed("a ref name is not UTF-8"))?;
            let text = text.strip_suffix('\n').unwrap_or(text);
            if text.starts_with("shallow ") {
                let reason = "the pushing clone is shallow: run `git fetch --unshallow`, then push again";
                request.refused = Some(reason.to_owned());
                continue;
            }
            if text.starts_with("push-cert") {
                return Err(malformed("signed pushes are not supported: push without --signed"));
            }
            let text = match text.split_once('\0') {
                Some((text, capabilities)) if request.commands.is_empty() => {
                    request.capabilities(capabilities)?;
                    text
                }
                _ => text,
            };
            let mut command = parse(text).ok_or_else(|| malformed("a line is not `<old> <new> <ref>`"))?;
            if !names.insert(command.name.clone()) {
                command.refused = Some("the push names this ref twice".to_owned());
            }
            request.commands.push(command);
        }
        Err(malformed("it has too many refs"))
    }

    fn capabilities(&mut self, capabilities: &str) -> Result<(), ServeError> {
        for capability in capabilities.split(' ') {
            match capability {
                "report-status" => self.report = true,
                "side-band-64k" => self.side_band = true,
                "push-options" => return Err(malformed("push options are not supported: push without -o")),
                "atomic" => {
                    let reason = "atomic pushes are not supported: push without --atomic";
                    self.refused = Some(reason.to_owned());
                }
                other if other.starts_with("object-format=") && other != "object-format=sha1" => {
                    return Err(malformed("only SHA-1 repositories are supported"));
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Whether a pack follows.
    pub(crate) fn has_pack(&self) -> bool {
        self.commands.iter().any(|command| command.new.is_some())
    }
}

fn malformed(what: &str) -> ServeError {
    ServeError::Malformed(what.to_owned())
}

/// `<old> <new> <ref>`.
fn parse(line: &str) -> Option<Command> {
    let mut parts = line.splitn(3, ' ');
    let (old, new, name) = (parts.next()?, parts.next()?, parts.next()?);
    let oid = |text: &str| {
        let oid: Oid = text.parse().ok()?;
        Some((oid != Oid::ZERO).then_some(oid))
    };
    let (old, new) = (oid(old)?, oid(new)?);
    // The name is repeated in the answer, which is made of lines.
    if name.is_empty() || name.contains(|c: char| c.is_control()) {
        return None;
    }
    let refused = if !is_ref(name) {
        Some("only branches and tags with ordinary names can be pushed".to_owned())
    } else if name.starts_with("refs/tags/") && new.is_none() {
        Some("a tag is bound for good and cannot be deleted".to_owned())
    } else if old.is_none() && new.is_none() {
        Some("there is nothing to delete".to_owned())
    } else {
        None
    };
    Some(Command { old, new, name: name.to_owned(), refused })
}

/// A reason as it goes into a report: one line.
pub(crate) fn reason(text: &str) -> String {
    let line = one_line(text.lines().next().unwrap_or_default(), 500);
    if line.is_empty() { "refused".to_owned() } else { line }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use bytes::BytesMut;
    use futures_util::StreamExt;
    use proptest::prelude::*;

    use super::*;
    use crate::{Encoding, packet};

    const A: &str = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";
    const ZERO: &str = "0000000000000000000000000000000000000000";

    async fn read(bytes: Vec<u8>) -> Result<Request, ServeError> {
        let stream = futures_util::stream::iter([Ok(bytes.into())]).boxed();
        let mut body = Body::new(stream, Encoding::Identity, 1 << 20, Duration::from_secs(5));
        Request::read(&mut body, 2).await
    }

    async fn lines(lines: &[&str]) -> Result<Request, ServeError> {
        let mut buffer = BytesMut::new();
        for line in lines {
            packet::data(&mut buffer, line.as_bytes());
        }
        packet::flush(&mut buffer);
        read(buffer.to_vec()).await
    }

    #[tokio::test]
    async fn a_push_is_read() {
        let line = format!("{ZERO} {A} refs/heads/main\0 report-status side-band-64k agent=git/2");
        let request = lines(&[&line]).await.unwrap();
        assert!(request.report && request.side_band && request.has_pack());
        assert_eq!(request.commands.len(), 1);
        assert_eq!(request.commands[0].name, "refs/heads/main");
        assert_eq!(request.commands[0].refused, None);
    }

    #[tokio::test]
    async fn a_probe_has_no_commands() {
        assert!(lines(&[]).await.unwrap().commands.is_empty());
        assert!(read(Vec::new()).await.unwrap().commands.is_empty());
    }

    #[tokio::test]
    async fn what_is_refused() {
        let refused = async |line: String| lines(&[&line]).await.unwrap().commands[0].refused.is_some();
        assert!(refused(format!("{ZERO} {A} refs/adamant/commits/{A}")).await);
        assert!(refused(format!("{ZERO} {A} HEAD")).await);
        assert!(refused(format!("{A} {ZERO} refs/tags/v1")).await);
        assert!(!refused(format!("{A} {ZERO} refs/heads/main")).await);
        let shallow = lines(&[&format!("shallow {A}"), &format!("{ZERO} {A} refs/heads/main")]).await.unwrap();
        assert!(shallow.refused.unwrap().contains("--unshallow"));
        let three: Vec<String> = (0..3).map(|n| format!("{ZERO} {A} refs/heads/b{n}")).collect();
        let three = lines(&three.iter().map(String::as_str).collect::<Vec<_>>()).await.unwrap();
        assert!(three.refused.unwrap().contains("at most 2 refs"));
    }

    #[tokio::test]
    async fn what_is_malformed() {
        for line in ["", "x", &format!("{A} {A}"), &format!("{A} {A} "), &format!("{A} HEAD refs/heads/x")] {
            assert!(lines(&[line]).await.is_err(), "{line}");
        }
        assert!(lines(&["push-cert\0"]).await.is_err());
        assert!(lines(&[&format!("{A} {A} refs/heads/a\nb")]).await.is_err());
        assert!(read(b"0032short".to_vec()).await.is_err());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn any_lines_parse_or_fail(text in prop::collection::vec("[ -~\0\n]{0,120}", 0..5)) {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
            let text: Vec<&str> = text.iter().map(String::as_str).collect();
            let _ = runtime.block_on(lines(&text));
        }
    }
}

//! What stands after the status of an HTTP/1.1 answer. Some clients (containerd, oras) show that line alone
//! and never a body, and an answer to `HEAD` has none.

use http::StatusCode;
use hyper::ext::ReasonPhrase;

/// Longest phrase in bytes: room for any name and two digests, and far below what clients and proxies take
/// as a line.
const MOST: usize = 640;

/// The phrase of a refusal: the standard one, then `message`. Whatever is not printable ASCII, and so could
/// end the line, becomes `?`. `None` where clients decide by the status and nobody reads on: credentials
/// are asked for, or something is not there.
pub fn reason_phrase(status: StatusCode, message: &str) -> Option<ReasonPhrase> {
    if matches!(status, StatusCode::UNAUTHORIZED | StatusCode::NOT_FOUND) {
        return None;
    }
    let words = status.canonical_reason()?;
    let mut phrase = format!("{words}: ");
    let printable = |c: char| if c == ' ' || c.is_ascii_graphic() { c } else { '?' };
    phrase.extend(message.chars().map(printable).take(MOST - phrase.len()));
    ReasonPhrase::try_from(phrase).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(status: u16, message: &str, expect: Option<&str>) {
        let phrase = reason_phrase(StatusCode::from_u16(status).unwrap(), message);
        let text = phrase.map(|phrase| String::from_utf8(phrase.as_bytes().to_vec()).unwrap());
        assert_eq!(text.as_deref(), expect, "{status} {message}");
    }

    #[test]
    fn what_could_end_the_line_does_not_reach_it() {
        check(409, "`a:b` is bound", Some("Conflict: `a:b` is bound"));
        check(403, "a\r\nSet-Cookie: x=y\n\0\t\x7f", Some("Forbidden: a??Set-Cookie: x=y????"));
        check(405, "nötig …", Some("Method Not Allowed: n?tig ?"));
        check(507, &"ü".repeat(9000), Some(&format!("Insufficient Storage: {}", "?".repeat(MOST - 22))));
        check(401, "credentials are needed", None);
        check(404, "not here", None);
        check(599, "no name of its own", None);
    }
}

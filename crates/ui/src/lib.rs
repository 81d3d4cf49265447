//! Server-rendered pages. Values in, HTML out: no I/O, no state, everything vendored.
//!
//! Reading only: no page here changes anything.

use adamant_api::{FactSummary, ReleaseSummary, Status};
use askama::Template;

/// A page could not be rendered; always a bug.
pub use askama::Error;

/// Filters the templates use.
#[expect(
    unreachable_pub,
    clippy::inline_always,
    clippy::unused_self,
    clippy::unnecessary_wraps,
    reason = "askama's macro writes `pub` items and asks for this signature"
)]
mod filters {
    /// The first seven characters of a commit id.
    #[askama::filter_fn]
    pub(crate) fn short(text: &str, _: &dyn askama::Values) -> askama::Result<String> {
        Ok(text.chars().take(7).collect())
    }
}

#[derive(Template)]
#[template(path = "board.html")]
struct Board<'a> {
    projects: &'a [Status],
}

/// All environments of all projects.
pub fn board(projects: &[Status]) -> Result<String, Error> {
    Board { projects }.render()
}

#[derive(Template)]
#[template(path = "project.html")]
struct Project<'a> {
    status: &'a Status,
}

/// One project: environments, releases, deployments.
pub fn project(status: &Status) -> Result<String, Error> {
    Project { status }.render()
}

#[derive(Template)]
#[template(path = "release.html")]
struct Release<'a> {
    release: &'a ReleaseSummary,
}

/// One release with its live build log.
pub fn release(release: &ReleaseSummary) -> Result<String, Error> {
    Release { release }.render()
}

#[derive(Template)]
#[template(path = "artifact.html")]
struct Artifact<'a> {
    digest: &'a str,
    facts: &'a [FactSummary],
    manifest: &'a str,
}

/// One artifact: every fact about it, and its manifest.
pub fn artifact(digest: &str, facts: &[FactSummary], manifest: &str) -> Result<String, Error> {
    Artifact { digest, facts, manifest }.render()
}

#[derive(Template)]
#[template(path = "ledger.html")]
struct Ledger<'a> {
    facts: &'a [FactSummary],
    before: Option<u64>,
    checkpoint: &'a str,
}

/// The newest facts; `before` is where the next page begins.
pub fn ledger(facts: &[FactSummary], before: Option<u64>, checkpoint: &str) -> Result<String, Error> {
    Ledger { facts, before, checkpoint }.render()
}

#[derive(Template)]
#[template(path = "fact.html")]
struct Fact<'a> {
    fact: &'a FactSummary,
    statement: &'a str,
}

/// One fact with its statement as recorded.
pub fn fact(fact: &FactSummary, statement: &str) -> Result<String, Error> {
    Fact { fact, statement }.render()
}

#[derive(Template)]
#[template(path = "notice.html")]
struct Notice<'a> {
    title: &'a str,
    text: &'a str,
    command: &'a str,
}

/// A page that only says something, with a command to run if there is one.
pub fn notice(title: &str, text: &str, command: &str) -> Result<String, Error> {
    Notice { title, text, command }.render()
}

/// A vendored file by name: its media type and bytes.
pub fn asset(name: &str) -> Option<(&'static str, &'static [u8])> {
    const SCRIPT: &str = "text/javascript; charset=utf-8";
    Some(match name {
        "htmx.min.js" => (SCRIPT, include_bytes!("../assets/htmx.min.js").as_slice()),
        "htmx-sse.min.js" => (SCRIPT, include_bytes!("../assets/htmx-sse.min.js").as_slice()),
        "page.css" => ("text/css; charset=utf-8", include_bytes!("../assets/page.css").as_slice()),
        "icon.svg" => ("image/svg+xml", include_bytes!("../assets/icon.svg").as_slice()),
        _ => return None,
    })
}

/// Text as HTML, for fragments outside of templates.
pub fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_people_wrote_is_never_markup() {
        let mut release: ReleaseSummary = serde_json::from_value(serde_json::json!({
            "name": "shop/1", "number": 1, "commit": "9f3c1e2aaaa", "subject": "<script>alert(1)</script>",
            "state": "built", "grade": "rebuilt", "digest": null, "artifacts": [], "running_in": ["dev"], "at": "now"
        }))
        .unwrap();
        let page = self::release(&release).unwrap();
        assert!(!page.contains("<script>alert"), "{page}");
        assert!(page.contains("&#60;script&#62;") || page.contains("&lt;script&gt;"));
        release.subject = "fine".into();
        let status = Status { project: "shop".into(), environments: vec![], releases: vec![release], log_size: 1 };
        let page = project(&status).unwrap();
        assert!(page.contains("9f3c1e2<") && page.contains("fine"));
        assert_eq!(escape("<a b='c'>&\""), "&lt;a b=&#39;c&#39;&gt;&amp;&quot;");
    }

    #[test]
    fn pages_load_nothing_from_elsewhere() {
        let pages = [board(&[]).unwrap(), ledger(&[], None, "note").unwrap(), notice("t", "x", "").unwrap()];
        for page in pages {
            for attribute in ["src=\"http", "href=\"http", "style=\"", "onclick"] {
                assert!(!page.contains(attribute), "{attribute} in {page}");
            }
            assert!(page.contains("lang=\"en\"") && page.contains("class=\"skip\""));
        }
        for name in ["htmx.min.js", "htmx-sse.min.js", "page.css"] {
            assert!(asset(name).is_some_and(|(_, bytes)| bytes.len() > 500));
        }
        assert!(asset("../lib.rs").is_none());
    }
}

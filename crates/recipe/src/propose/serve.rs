//! Facts from source text: which port the program listens on and what answers a health check.

use super::{Choice, Draft, Facts};

/// How programs ask for the variable that holds their port.
const READS_PORT: [&str; 4] = ["getenv(\"PORT\")", "env::var(\"PORT\")", "var_os(\"PORT\")", "env = \"PORT\""];
/// What a program that asks is told.
const TOLD_PORT: u16 = 8080;

/// Fills port and health from the artifact's own sources.
pub(super) fn fill(draft: &mut Draft, facts: &Facts, choices: &mut Vec<Choice>) {
    let prefix = if draft.path == "." { String::new() } else { format!("{}/", draft.path) };
    let sources = || {
        let own = facts.texts.iter().filter(|(path, _)| path.starts_with(&prefix));
        own.filter(|(path, _)| [".c", ".cc", ".cpp", ".rs"].iter().any(|end| path.ends_with(end)))
    };
    if let Some((path, port)) = sources().find_map(|(path, text)| port(text).map(|port| (path, port))) {
        draft.port = Some(port);
        choices.push(Choice { choice: format!("port = {port}"), reason: format!("{path} listens there") });
    } else if let Some((path, _)) = sources().find(|(_, text)| READS_PORT.iter().any(|mark| text.contains(mark))) {
        draft.port = Some(TOLD_PORT);
        let reason = format!("{path} reads its port from PORT, in which it is told any");
        choices.push(Choice { choice: format!("port = {TOLD_PORT}"), reason });
    } else {
        let name = &draft.name;
        let reason =
            format!("no source of {name} names a port: add `port = 8080` if it serves, or nothing leads to it");
        choices.push(Choice { choice: "no port".to_owned(), reason });
        return;
    }
    for health in ["/healthz", "/health"] {
        let literal = format!("\"{health}\"");
        if let Some((path, _)) = sources().find(|(_, text)| text.contains(&literal)) {
            draft.health = Some(health.to_owned());
            choices.push(Choice { choice: format!("health = {literal}"), reason: format!("{path} answers it") });
            return;
        }
    }
}

/// The first port after something that looks like an address or `htons(`.
fn port(text: &str) -> Option<u16> {
    let mut found: Option<(usize, u16)> = None;
    for mark in ["htons(", "\"0.0.0.0:", "\"127.0.0.1:", "\"[::]:", "\"[::1]:", "[0, 0, 0, 0], ", "[127, 0, 0, 1], "] {
        for (at, _) in text.match_indices(mark).take(1000) {
            let digits: String = text[at + mark.len()..].chars().take_while(char::is_ascii_digit).take(6).collect();
            if let Ok(port @ 1..) = digits.parse::<u16>() {
                found = Some(found.map_or((at, port), |first| first.min((at, port))));
                break;
            }
        }
    }
    found.map(|(_, port)| port)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports() {
        for (text, expect) in [
            ("htons(8080)", Some(8080)),
            ("htons(port) htons(81)", Some(81)),
            ("bind(\"127.0.0.1:0\") bind(\"[::]:90\")", Some(90)),
            ("SocketAddr::from(([0, 0, 0, 0], 3000))", Some(3000)),
            ("\"0.0.0.0:99999\"", None),
            ("8080", None),
        ] {
            assert_eq!(port(text), expect, "{text}");
        }
    }
}

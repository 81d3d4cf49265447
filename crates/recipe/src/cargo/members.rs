//! Which manifests belong to a workspace.

use toml::{Table, Value};

/// Why the members could not be told.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MembersError {
    /// The root manifest is not TOML.
    #[error("{path} cannot be read: {message}")]
    Syntax {
        /// The manifest.
        path: String,
        /// Why.
        message: String,
    },
    /// More members than any real workspace has.
    #[error("{path}: the workspace has more than {MAX_MEMBERS} members")]
    TooMany {
        /// The manifest.
        path: String,
    },
}

const MAX_MEMBERS: usize = 2000;
const MAX_PATTERNS: usize = 500;

/// Paths of the manifests of the workspace whose root is `<root>/Cargo.toml` (`root` is `.` for
/// the repository itself): the root first, then the members in order. `paths` are all files of
/// the source tree, sorted or not.
pub fn manifests<'a>(
    root: &str,
    root_text: &str,
    paths: impl IntoIterator<Item = &'a str>,
) -> Result<Vec<String>, MembersError> {
    let prefix = if root == "." { String::new() } else { format!("{root}/") };
    let path = format!("{prefix}Cargo.toml");
    let manifest: Table = root_text.parse().map_err(|error: toml::de::Error| MembersError::Syntax {
        path: path.clone(),
        message: error.to_string().trim_end().to_owned(),
    })?;
    let workspace = manifest.get("workspace").and_then(Value::as_table);
    let list = |key: &str| -> Vec<String> {
        let all = workspace.and_then(|workspace| workspace.get(key)).and_then(Value::as_array);
        let texts = all.into_iter().flatten().filter_map(Value::as_str).take(MAX_PATTERNS);
        texts.map(|text| text.trim_start_matches("./").trim_end_matches('/').to_owned()).collect()
    };
    let (members, exclude) = (list("members"), list("exclude"));
    let mut found = Vec::new();
    for candidate in paths {
        let Some(dir) = candidate.strip_prefix(&prefix).and_then(|rest| rest.strip_suffix("/Cargo.toml")) else {
            continue;
        };
        let excluded = exclude
            .iter()
            .any(|out| dir == out || dir.strip_prefix(out.as_str()).is_some_and(|rest| rest.starts_with('/')));
        if !excluded && members.iter().any(|pattern| matches(pattern, dir)) {
            if found.len() == MAX_MEMBERS {
                return Err(MembersError::TooMany { path });
            }
            found.push(candidate.to_owned());
        }
    }
    found.sort();
    found.dedup();
    found.insert(0, path);
    Ok(found)
}

/// Glob match, part by part: `**` is any number of parts, `*` and `?` stay inside one.
fn matches(pattern: &str, path: &str) -> bool {
    let pattern: Vec<&str> = pattern.split('/').collect();
    let path: Vec<&str> = path.split('/').collect();
    glob(&pattern, &path, &|part| *part == "**", &|part, name| {
        let (part, name): (Vec<char>, Vec<char>) = (part.chars().collect(), name.chars().collect());
        glob(&part, &name, &|c| *c == '*', &|c, other| *c == '?' || c == other)
    })
}

/// Matches with wildcards that take any number of items, in time |pattern| × |text|.
fn glob<T>(pattern: &[T], text: &[T], any: &dyn Fn(&T) -> bool, one: &dyn Fn(&T, &T) -> bool) -> bool {
    let (mut p, mut t) = (0, 0);
    let mut retry = None;
    while t < text.len() {
        if p < pattern.len() && any(&pattern[p]) {
            retry = Some((p, t));
            p += 1;
        } else if p < pattern.len() && one(&pattern[p], &text[t]) {
            p += 1;
            t += 1;
        } else if let Some((star, from)) = retry {
            p = star + 1;
            t = from + 1;
            retry = Some((star, t));
        } else {
            return false;
        }
    }
    pattern[p..].iter().all(any)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn globs() {
        for (pattern, path, expect) in [
            ("crates/*", "crates/a", true),
            ("crates/*", "crates/a/b", false),
            ("crates/**", "crates/a/b", true),
            ("**/b", "crates/a/b", true),
            ("a", "a", true),
            ("a?c-*", "abc-def", true),
            ("a?c-*", "ac-def", false),
            ("*", "", true),
            ("a*b*c", "aXbYbZc", true),
            ("a*b*c", "aXbYbZ", false),
        ] {
            assert_eq!(matches(pattern, path), expect, "{pattern} {path}");
        }
    }

    #[test]
    fn members() {
        let text = "[workspace]\nmembers = [\"crates/*\", \"./tool/\"]\nexclude = [\"crates/old\"]\n";
        let paths = [
            "Cargo.toml",
            "crates/b/Cargo.toml",
            "crates/a/Cargo.toml",
            "crates/old/Cargo.toml",
            "tool/Cargo.toml",
            "x/Cargo.toml",
            "crates/a/src/lib.rs",
        ];
        assert_eq!(
            manifests(".", text, paths).unwrap(),
            ["Cargo.toml", "crates/a/Cargo.toml", "crates/b/Cargo.toml", "tool/Cargo.toml"]
        );
        let below: Vec<String> = paths.iter().map(|path| format!("web/{path}")).collect();
        let found = manifests("web", text, below.iter().map(String::as_str)).unwrap();
        assert_eq!(found[..2], ["web/Cargo.toml", "web/crates/a/Cargo.toml"]);
        assert_eq!(manifests(".", "[package]\nname = \"a\"", paths).unwrap(), ["Cargo.toml"]);
    }
}

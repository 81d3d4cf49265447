//! Tells from a failed step's output that a program was not there.
//!
//! Shells, make, env and compilers have their own words for it. Reading them is a courtesy to the
//! reader of the error; nothing rests on it.

/// The program that was not found, quoted; "a program" if only the exit status says so.
pub(crate) fn program<S: AsRef<str>>(lines: &[S], not_found: bool) -> Option<String> {
    let named = lines.iter().rev().find_map(|line| named(line.as_ref()));
    match named {
        Some(name) if is_tool(name) => Some(format!("`{name}`")),
        // A file of the tree: no package has it.
        Some(_) => None,
        None => not_found.then(|| "a program".to_owned()),
    }
}

/// What a line says is not there.
fn named(line: &str) -> Option<&str> {
    let line = line.trim();
    if let Some(before) = line.strip_suffix(": command not found") {
        return before.rsplit(": ").next();
    }
    // dash: `/bin/sh: 1: bison: not found`.
    if let Some(before) = line.strip_suffix(": not found") {
        let mut parts = before.rsplit(": ");
        let name = parts.next()?;
        return parts.next().filter(|number| number.bytes().all(|b| b.is_ascii_digit())).map(|_| name);
    }
    // `make: bison: No such file or directory`, and from GNU make 4.4 on with what it ran.
    if let Some(before) = line.strip_suffix(": No such file or directory") {
        let (who, name) = before.split_once(": ")?;
        let who = who.rsplit('/').next()?;
        return match who {
            "env" => Some(unquoted(name)),
            _ if who == "make" || (who.starts_with("make[") && who.ends_with(']')) => {
                Some(name).filter(|name| !name.contains(' '))
            }
            _ => None,
        };
    }
    // rustc, then cargo's build scripts, then gcc.
    if let Some((_, after)) = line.split_once("linker `") {
        return after.strip_suffix("` not found").or_else(|| Some(after.split_once("` not found")?.0));
    }
    if let Some((_, after)) = line.split_once("could not execute process `") {
        return after.split(['`', ' ']).next();
    }
    let (_, after) = line.split_once("fatal error: cannot execute ")?;
    Some(unquoted(after.split(':').next()?))
}

fn unquoted(text: &str) -> &str {
    text.trim_matches(['\'', '`', '\u{2018}', '\u{2019}'])
}

/// Whether a package may have it: a bare name, or a path that is not in the tree.
fn is_tool(name: &str) -> bool {
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.' | b'+' | b'/');
    !name.is_empty()
        && name.len() <= 100
        && name.bytes().all(plain)
        && (!name.contains('/') || ["/bin/", "/sbin/", "/usr/"].iter().any(|dir| name.starts_with(dir)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_the_program_in_the_words_of_its_caller() {
        for (line, expect) in [
            ("/bin/sh: 1: bison: not found", Some("`bison`")),
            ("/usr/bin/sh: 12: flex: not found", Some("`flex`")),
            ("bash: line 1: cmake: command not found", Some("`cmake`")),
            ("make: bison: No such file or directory", Some("`bison`")),
            ("make[2]: g++: No such file or directory", Some("`g++`")),
            ("/usr/bin/env: \u{2018}python3\u{2019}: No such file or directory", Some("`python3`")),
            ("env: 'perl': No such file or directory", Some("`perl`")),
            ("error: linker `cc` not found", Some("`cc`")),
            ("  could not execute process `protoc --version` (never executed)", Some("`protoc`")),
            ("gcc: fatal error: cannot execute \u{2018}cc1plus\u{2019}: execvp: No such file", Some("`cc1plus`")),
            ("sh: 1: /usr/bin/python3: not found", Some("`/usr/bin/python3`")),
            // Files of the tree, and other things that are not there.
            ("sh: 1: ./configure: not found", None),
            ("make: ./gen: No such file or directory", None),
            ("main.c:1:10: fatal error: zlib.h: No such file or directory", None),
            ("Makefile:1: rules.mk: No such file or directory", None),
            ("make: *** sub: No such file or directory.  Stop.", None),
            ("ld: cannot find -lz: No such file or directory", None),
            ("cat: x: No such file or directory", None),
            ("symbol: not found", None),
            ("", None),
        ] {
            assert_eq!(program(&[line, "make: *** [Makefile:2: out] Error 127"], false).as_deref(), expect, "{line}");
        }
        assert_eq!(program(&["?"], true).as_deref(), Some("a program"));
        assert_eq!(program(&["sh: 1: ./configure: not found"], true), None);
        assert_eq!(program::<&str>(&[], false), None);
    }
}

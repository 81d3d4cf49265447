//! `adamant.toml`: parsing and defaults.

use std::collections::{BTreeMap, BTreeSet};

use adamant_digest::Digest;

use crate::artifact::{Artifact, Recipe, Source, Template};
use crate::names::{self, PackageRequest};
use crate::read::{Document, RecipeError, Table, nearest};

/// Longest recipe read, in bytes.
const MAX_TEXT: usize = 256 << 10;
/// Most artifacts and most sources.
const MAX_TABLES: usize = 64;
/// Most members of a list or table of an artifact.
const MAX_LIST: usize = 256;
/// Longest command, argument or value, in bytes.
const MAX_VALUE: usize = 64 << 10;

const ARTIFACT_KEYS: &[&str] = &[
    "path",
    "kind",
    "toolchain",
    "build",
    "files",
    "runtime",
    "run",
    "port",
    "health",
    "env",
    "needs",
    "sources",
    "cpus",
    "memory_mb",
    "timeout_s",
];

impl Recipe {
    /// Reads a recipe. `detect` says whether a file exists in the source tree; it is asked for
    /// `<path>/Makefile` and the like where the recipe gives no `kind`.
    pub fn parse(text: &str, detect: &dyn Fn(&str) -> bool) -> Result<Self, RecipeError> {
        let document = Document::new(crate::RECIPE_FILE, text, MAX_TEXT)?;
        let parsed = document.parse()?;
        let root = document.root(&parsed);
        let project =
            root.required(root.string("project")?, "project", "write `project = \"name\"` in the first line")?;
        root.check("project", names::label(project))?;
        let sources = parse_sources(&root)?;
        let mut artifacts = Vec::new();
        for (name, at, is_table) in root.members() {
            if matches!(name, "project" | "sources") {
                continue;
            }
            if !is_table {
                let fix = match nearest(name, &["project", "sources"]) {
                    Some(near) => format!("did you mean `{near}`?"),
                    None => "artifacts are tables, `[web]`, and their keys stand below".to_owned(),
                };
                return Err(root.error_span(&at, format!("`{}` is not a key here; {fix}", crate::read::shown(name))));
            }
            root.check_span(&at, names::label(name))?;
            if artifacts.len() == MAX_TABLES {
                return Err(root.error_span(&at, format!("more than {MAX_TABLES} artifacts: split the project")));
            }
            if let Some(table) = root.table(name)? {
                artifacts.push(parse_artifact(name, &table, &sources, detect)?);
            }
        }
        if artifacts.is_empty() {
            return Err(
                root.error("no artifact: write a table such as `[web]` with `files` and `run`, or run `adamant init`")
            );
        }
        let used: BTreeSet<&str> =
            artifacts.iter().flat_map(|artifact| &artifact.sources).map(String::as_str).collect();
        if let Some(name) = sources.keys().find(|name| !used.contains(name.as_str())) {
            return Err(root.error_at(
                "sources",
                format!("source `{name}` is used by no artifact: add it to `sources` of one, or delete it"),
            ));
        }
        Ok(Self { project: project.to_owned(), artifacts, sources })
    }
}

fn parse_sources(root: &Table<'_, '_>) -> Result<BTreeMap<String, Source>, RecipeError> {
    let mut sources = BTreeMap::new();
    let Some(tables) = root.table("sources")? else { return Ok(sources) };
    for (name, table) in tables.tables(MAX_TABLES)? {
        names::label(name).map_err(|error| table.error(error.to_string()))?;
        table.only(&["url", "sha256", "dir", "unpack"])?;
        let url = table.required(table.string("url")?, "url", "write `url = \"https://…\"`")?;
        table.check("url", names::url(url))?;
        let digest = match table.string("sha256")? {
            Some(hex) => {
                let hex = hex.strip_prefix("sha256:").unwrap_or(hex);
                let fix = "`sha256`: expected 64 lower-case hex digits, or leave it out and run `adamant lock`";
                Some(Digest::from_hex(hex).map_err(|_| table.error_at("sha256", fix))?)
            }
            None => None,
        };
        let dir = table.check("dir", names::relative_path(table.string("dir")?.unwrap_or(".")))?;
        let unpack = table.boolean("unpack")?.unwrap_or(true);
        let source = Source { name: name.to_owned(), url: url.to_owned(), digest, dir, unpack };
        if !unpack && names::relative_path(source.file_name()).is_err() {
            return Err(table.error_at("url", "the address ends without a file name, which `unpack = false` needs"));
        }
        sources.insert(name.to_owned(), source);
    }
    Ok(sources)
}

fn parse_artifact(
    name: &str,
    table: &Table<'_, '_>,
    sources: &BTreeMap<String, Source>,
    detect: &dyn Fn(&str) -> bool,
) -> Result<Artifact, RecipeError> {
    table.only(ARTIFACT_KEYS)?;
    let path = table.check("path", names::relative_path(table.string("path")?.unwrap_or(".")))?;
    let template = parse_template(table, &path, detect)?;
    let Some(build) = table.string("build")?.or(template.build()) else {
        return Err(table
            .error(format!("`{name}` has kind \"command\" and no `build`: write the command that makes its files")));
    };
    let fine = !build.trim().is_empty() && build.len() <= MAX_VALUE && !build.contains('\0');
    if !fine {
        return Err(table.error_at("build", "`build` is empty or too long: write a shell command of at most 64 KiB"));
    }
    let toolchain = match packages(table, "toolchain")? {
        Some(list) => list,
        None => template.toolchain().iter().map(|&name| name.to_owned()).collect(),
    };
    let port = table.integer("port", 1..=65_535)?.and_then(|port| u16::try_from(port).ok());
    let run = parse_run(table)?;
    if run.is_empty() && port.is_some() {
        return Err(
            table.error_at("port", format!("`{name}` has a port and nothing to run: write `run = [\"/app/{name}\"]`"))
        );
    }
    let health = parse_health(table, port)?;
    let mut env: BTreeMap<String, String> =
        template.env().iter().map(|&(name, value)| (name.to_owned(), value.to_owned())).collect();
    env.extend(parse_env(table)?);
    let number = |key: &str, default: i64, max: i64, min: i64| {
        table.integer(key, min..=max).map(|number| number.unwrap_or(default).unsigned_abs())
    };
    Ok(Artifact {
        name: name.to_owned(),
        toolchain,
        runtime: packages(table, "runtime")?.unwrap_or_default(),
        build: build.to_owned(),
        env,
        files: parse_files(name, table)?,
        run,
        port,
        health,
        needs_commit: parse_needs(table)?,
        cpus: u32::try_from(number("cpus", 2, 64, 1)?).unwrap_or(2),
        memory_mb: number("memory_mb", 2048, 65_536, 64)?,
        timeout_s: number("timeout_s", 900, 86_400, 1)?,
        sources: parse_source_names(table, sources)?,
        path,
        template,
    })
}

fn parse_template(table: &Table<'_, '_>, path: &str, detect: &dyn Fn(&str) -> bool) -> Result<Template, RecipeError> {
    if let Some(kind) = table.string("kind")? {
        return [Template::Make, Template::Cargo, Template::Command]
            .into_iter()
            .find(|template| template.as_str() == kind)
            .ok_or_else(|| {
                table.error_at(
                    "kind",
                    format!("`{}` is not a kind: write make, cargo or command", crate::read::shown(kind)),
                )
            });
    }
    let at = |file: &str| if path == "." { file.to_owned() } else { format!("{path}/{file}") };
    let make = ["Makefile", "GNUmakefile", "makefile"].iter().any(|file| detect(&at(file)));
    let cargo = detect(&at("Cargo.toml"));
    match (make, cargo) {
        (true, false) => Ok(Template::Make),
        (false, true) => Ok(Template::Cargo),
        (true, true) => Err(table.error(format!(
            "`{path}` holds a Makefile and a Cargo.toml: say which with `kind = \"make\"` or `kind = \"cargo\"`"
        ))),
        (false, false) if table.has("build") => Ok(Template::Command),
        (false, false) => Err(table.error(format!(
            "`{path}` holds neither a Makefile nor a Cargo.toml: set `path`, or say `kind` and `build`"
        ))),
    }
}

fn packages(table: &Table<'_, '_>, key: &str) -> Result<Option<Vec<String>>, RecipeError> {
    let Some(list) = table.strings(key, MAX_LIST)? else { return Ok(None) };
    let mut seen = BTreeMap::new();
    for (text, at) in list {
        let request = table.check_span(&at, text.parse::<PackageRequest>())?;
        if seen.insert(request.name.clone(), text.to_owned()).is_some() {
            return Err(table.error_span(&at, format!("`{}` stands in `{key}` twice: delete one", request.name)));
        }
    }
    Ok(Some(seen.into_values().collect()))
}

fn parse_files(name: &str, table: &Table<'_, '_>) -> Result<BTreeMap<String, String>, RecipeError> {
    let mut files = BTreeMap::new();
    for ((to, to_at), (from, from_at)) in table.string_map("files", MAX_LIST)? {
        table.check_span(&to_at, names::image_path(to))?;
        files.insert(to.to_owned(), table.check_span(&from_at, names::relative_path(from))?);
    }
    if files.is_empty() {
        return Err(table.error(format!("`{name}` has no `files`: write `files = {{ \"/app/{name}\" = \"{name}\" }}`, path in the image = path the build makes")));
    }
    Ok(files)
}

fn parse_run(table: &Table<'_, '_>) -> Result<Vec<String>, RecipeError> {
    let list = table.strings("run", MAX_LIST)?.unwrap_or_default();
    if let Some((program, at)) = list.first()
        && !program.starts_with('/')
    {
        return Err(table.error_span(at, "the program to run is named by its absolute path in the image"));
    }
    for (text, at) in &list {
        if text.len() > MAX_VALUE || text.contains('\0') {
            return Err(table.error_span(at, "an argument is longer than 64 KiB or holds a NUL"));
        }
    }
    Ok(list.into_iter().map(|(text, _)| text.to_owned()).collect())
}

fn parse_health(table: &Table<'_, '_>, port: Option<u16>) -> Result<Option<String>, RecipeError> {
    let Some(path) = table.string("health")? else { return Ok(None) };
    if port.is_none() {
        return Err(table.error_at("health", "`health` needs a `port` to ask"));
    }
    let plain = path.starts_with('/') && path.len() <= 1024 && path.bytes().all(|b| b.is_ascii_graphic() && b != b'#');
    if plain {
        Ok(Some(path.to_owned()))
    } else {
        Err(table.error_at("health", "`health` is not an HTTP path: write `health = \"/healthz\"`"))
    }
}

fn parse_env(table: &Table<'_, '_>) -> Result<BTreeMap<String, String>, RecipeError> {
    let mut env = BTreeMap::new();
    for ((name, name_at), (value, value_at)) in table.string_map("env", MAX_LIST)? {
        let first = name.bytes().next().is_some_and(|b| b.is_ascii_alphabetic() || b == b'_');
        if !first || name.len() > 100 || !name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_') {
            return Err(table.error_span(&name_at, "not the name of an environment variable: use A-Z, 0-9 and `_`"));
        }
        if value.len() > MAX_VALUE || value.contains('\0') {
            return Err(table.error_span(&value_at, "the value is longer than 64 KiB or holds a NUL"));
        }
        env.insert(name.to_owned(), value.to_owned());
    }
    Ok(env)
}

fn parse_needs(table: &Table<'_, '_>) -> Result<bool, RecipeError> {
    let list = table.strings("needs", 1)?.unwrap_or_default();
    match list.iter().find(|(text, _)| *text != "commit") {
        Some((_, at)) => Err(table.error_span(at, "a step can need `commit` and nothing else")),
        None => Ok(!list.is_empty()),
    }
}

fn parse_source_names(table: &Table<'_, '_>, sources: &BTreeMap<String, Source>) -> Result<Vec<String>, RecipeError> {
    let mut used = BTreeSet::new();
    for (name, at) in table.strings("sources", MAX_TABLES)?.unwrap_or_default() {
        if !sources.contains_key(name) {
            let known: Vec<&str> = sources.keys().map(String::as_str).collect();
            let fix = match nearest(name, &known) {
                Some(near) => format!("did you mean `{near}`?"),
                None => "add a table `[sources.NAME]` with its `url`".to_owned(),
            };
            return Err(table.error_span(&at, format!("there is no source `{}`; {fix}", crate::read::shown(name))));
        }
        used.insert(name.to_owned());
    }
    Ok(used.into_iter().collect())
}

//! `init` and `lock`: from a directory to a repository that can be pushed.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use adamant_api::{Class, LockRequest, Locked, NewProject, Project};
use adamant_recipe::{LOCK_FILE, Lock, RECIPE_FILE, Recipe};

use super::{connect, segment};
use crate::output::{self, Failure, say};
use crate::project::{self, git};

/// Native locks that may be sent along, in bytes each.
const MAX_NATIVE: u64 = 8 * 1024 * 1024;
/// Source files looked into for `init`.
const MAX_TEXTS: usize = 2000;

pub(super) async fn init(data: Option<&Path>, named: Option<&str>, json: bool) -> Result<ExitCode, Failure> {
    let root = project::root()?;
    let server = connect(data).await?;
    let data = project::data_dir(data)?;
    let recipe_path = root.join(RECIPE_FILE);
    let (name, choices) = if recipe_path.exists() {
        let recipe = read_recipe(&root)?;
        if let Some(named) = named.filter(|named| *named != recipe.project) {
            return Err(Failure::usage(format!("{RECIPE_FILE} names the project `{}`, not `{named}`", recipe.project))
                .hint(format!("change `project` in {RECIPE_FILE}, or leave `--project` out")));
        }
        (recipe.project, vec![(RECIPE_FILE.to_owned(), "it was here before".to_owned())])
    } else {
        let name = match named {
            Some(name) => name.to_owned(),
            None => directory_name(&root),
        };
        let proposal = adamant_recipe::propose(&name, &facts(&root)?).map_err(|error| {
            Failure::usage(error.to_string()).hint("write adamant.toml by hand: docs/recipe.md shows how")
        })?;
        write_durably(&recipe_path, proposal.recipe.as_bytes())?;
        let choices = proposal.choices.into_iter().map(|c| (c.choice, c.reason)).collect();
        (name, choices)
    };
    let created: Project = server.post("/projects", &NewProject { name: name.clone() }).await?;

    set_remote(&root, &created.remote)?;
    let exe = std::env::current_exe()?;
    // git runs the helper through sh; the quoting keeps any path one word.
    let helper = format!("!{} --data {} credential", quoted(&exe), quoted(&data));
    let data_text = data.display().to_string();
    for (key, value) in [
        (project::PROJECT_KEY, name.as_str()),
        (project::DATA_KEY, data_text.as_str()),
        (&format!("credential.{}.helper", server.url), helper.as_str()),
    ] {
        git(&root, &["config", key, value])
            .map_err(|problem| Failure::usage(format!("cannot set {key} in .git/config")).cause(problem))?;
    }
    if json {
        output::json(&created)?;
    } else {
        for (choice, reason) in choices {
            say(format!("{choice}  ({reason})"));
        }
        say(format!("git remote `adamant`  ({})", created.remote));
        output::result(format!("{name} is set up; next: adamant lock, commit, git push adamant HEAD:main"))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Shell quoting for the credential helper.
fn quoted(path: &Path) -> String {
    format!("'{}'", path.display().to_string().replace('\'', r"'\''"))
}

fn set_remote(root: &Path, url: &str) -> Result<(), Failure> {
    let present = git(root, &["remote", "get-url", "adamant"]).ok();
    let arguments: &[&str] = match present.as_deref() {
        Some(same) if same == url => return Ok(()),
        // A server of ours that has moved: the same project on another port.
        Some(other) if path_of(other) == path_of(url) => &["remote", "set-url", "adamant", url],
        Some(other) => {
            return Err(Failure::usage(format!("the git remote `adamant` is {other} already"))
                .hint("rename it (`git remote rename adamant NAME`) or remove it, then run `adamant init` again"));
        }
        None => &["remote", "add", "adamant", url],
    };
    git(root, arguments).map_err(|problem| Failure::usage("cannot set the git remote `adamant`").cause(problem))?;
    Ok(())
}

/// What follows host and port.
fn path_of(url: &str) -> Option<&str> {
    let rest = url.strip_prefix("http://").or_else(|| url.strip_prefix("https://"))?;
    rest.find('/').map(|at| &rest[at..])
}

/// The directory's name as a project name: lower case, everything else a dash.
fn directory_name(root: &Path) -> String {
    let name = root.file_name().map(|n| n.to_string_lossy().to_lowercase()).unwrap_or_default();
    let name: String =
        name.chars().map(|c| if c.is_ascii_lowercase() || c.is_ascii_digit() { c } else { '-' }).collect();
    name.trim_matches('-').chars().take(40).collect()
}

/// What the directory shows that decides templates: what git would commit, and the texts of
/// files that help.
fn facts(root: &Path) -> Result<adamant_recipe::Facts, Failure> {
    let mut facts = adamant_recipe::Facts { paths: listed(root)?, ..Default::default() };
    for path in &facts.paths {
        let fits = std::fs::metadata(root.join(path)).is_ok_and(|meta| meta.is_file() && meta.len() <= MAX_NATIVE);
        if fits
            && facts.texts.len() < MAX_TEXTS
            && adamant_recipe::Facts::wants(path)
            && let Ok(text) = std::fs::read_to_string(root.join(path))
        {
            facts.texts.insert(path.clone(), text);
        }
    }
    Ok(facts)
}

/// What git would commit, as paths from the root.
fn listed(root: &Path) -> Result<Vec<String>, Failure> {
    let listed = git(root, &["ls-files", "-z", "--cached", "--others", "--exclude-standard"])
        .map_err(|problem| Failure::usage("git cannot list the files here").cause(problem))?;
    Ok(listed.split('\0').filter(|path| !path.is_empty()).map(str::to_owned).collect())
}

fn read_recipe(root: &Path) -> Result<Recipe, Failure> {
    let path = root.join(RECIPE_FILE);
    let text = std::fs::read_to_string(&path).map_err(|error| {
        Failure::usage(format!("cannot read {RECIPE_FILE}")).cause(error).hint("`adamant init` writes one")
    })?;
    Recipe::parse(&text, &|file| root.join(file).exists()).map_err(|error| Failure::usage(error.to_string()))
}

pub(super) async fn lock(data: Option<&Path>, update: bool, check: bool, json: bool) -> Result<ExitCode, Failure> {
    let root = project::root()?;
    let recipe = read_recipe(&root)?;
    let lock_path = root.join(LOCK_FILE);
    let present = match std::fs::read_to_string(&lock_path) {
        Ok(text) => Some(text),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
        Err(error) => return Err(error.into()),
    };
    if check {
        let Some(text) = present else {
            return Err(Failure::no(format!("there is no {LOCK_FILE}")).hint("run `adamant lock`"));
        };
        let lock = Lock::parse(&text).map_err(|e| Failure::usage(e.to_string()))?;
        adamant_recipe::lock_agrees(&recipe, &lock).map_err(|e| Failure::no(e.to_string()))?;
        check_manifests(&root, &recipe, Class::No)?;
        if json {
            output::json(&serde_json::json!({ "fits": true }))?;
        } else {
            output::result(format!("{LOCK_FILE} fits {RECIPE_FILE}"))?;
        }
        return Ok(ExitCode::SUCCESS);
    }
    check_manifests(&root, &recipe, Class::Usage)?;
    let request = LockRequest {
        recipe: std::fs::read_to_string(root.join(RECIPE_FILE))?,
        lock: present.clone(),
        native: native_locks(&root, &recipe)?,
        files: template_files(&root, &recipe),
        update,
    };
    let server = connect(data).await?;
    let path = format!("/projects/{}/lock", segment(&recipe.project));
    let locked: Locked = server.stream(&path, &request, output::progress).await?;
    if present.as_deref() != Some(&locked.lock) {
        write_durably(&lock_path, locked.lock.as_bytes())?;
    }
    if json {
        output::json(&locked)?;
    } else {
        for change in &locked.changes {
            say(change);
        }
        let state = if present.as_deref() == Some(&locked.lock) { "is unchanged" } else { "is written" };
        output::result(format!(
            "{LOCK_FILE} {state}: {} inputs kept, {} new ({} MB)",
            locked.kept,
            locked.new,
            locked.bytes.div_ceil(1_000_000)
        ))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Whether every native lock of the recipe answers the manifests beside it, as a push will be
/// asked; `class` is that of the refusal.
fn check_manifests(root: &Path, recipe: &Recipe, class: Class) -> Result<(), Failure> {
    let locks: BTreeSet<String> = recipe.artifacts.iter().flat_map(adamant_recipe::Artifact::native_locks).collect();
    if locks.is_empty() {
        return Ok(());
    }
    let mut paths = listed(root)?;
    paths.retain(|path| root.join(path).is_file());
    let read = |path: &str| {
        std::fs::read_to_string(root.join(path)).map_err(|e| Failure::usage(format!("cannot read {path}")).cause(e))
    };
    for lock_path in &locks {
        let dir = lock_path.strip_suffix("/Cargo.lock").unwrap_or(".");
        let root_manifest = if dir == "." { "Cargo.toml".to_owned() } else { format!("{dir}/Cargo.toml") };
        if !root.join(lock_path).is_file() {
            return Err(Failure::new(class, format!("there is no {lock_path}"))
                .hint("`cargo generate-lockfile` writes it; commit it"));
        }
        let lock = adamant_recipe::cargo::parse(&read(lock_path)?)
            .map_err(|e| Failure::new(class, format!("{lock_path}: {e}")))?;
        if !paths.contains(&root_manifest) {
            // The manifest comes with a source archive; cargo's `--locked` compares them.
            continue;
        }
        let members = adamant_recipe::cargo::manifests(dir, &read(&root_manifest)?, paths.iter().map(String::as_str))
            .map_err(|e| Failure::new(class, e.to_string()))?;
        let texts = members.into_iter().map(|path| Ok((read(&path)?, path))).collect::<Result<Vec<_>, Failure>>()?;
        let manifests: Vec<_> =
            texts.iter().map(|(text, path)| adamant_recipe::cargo::Manifest { path, text }).collect();
        adamant_recipe::cargo::agrees(&manifests, &lock)
            .map_err(|e| Failure::new(class, format!("{lock_path} disagrees with its manifest")).cause(e))?;
    }
    Ok(())
}

/// Replaces a file so that a crash leaves the old or the new one.
fn write_durably(path: &Path, bytes: &[u8]) -> Result<(), Failure> {
    use std::io::Write as _;
    let dir = path.parent().unwrap_or(Path::new("."));
    let mut temp = tempfile::NamedTempFile::new_in(dir)?;
    temp.write_all(bytes)?;
    temp.as_file().sync_all()?;
    std::fs::set_permissions(temp.path(), std::os::unix::fs::PermissionsExt::from_mode(0o644))?;
    temp.persist(path).map_err(|error| error.error)?;
    std::fs::File::open(dir)?.sync_all()?;
    Ok(())
}

/// Native locks the recipe's artifacts use.
fn native_locks(root: &Path, recipe: &Recipe) -> Result<BTreeMap<String, String>, Failure> {
    let mut locks = BTreeMap::new();
    for path in recipe.artifacts.iter().flat_map(adamant_recipe::Artifact::native_locks) {
        match std::fs::read_to_string(root.join(&path)) {
            Ok(text) => {
                locks.insert(path, text);
            }
            // The server says what is missing, with the command that makes it.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(Failure::usage(format!("cannot read {path}")).cause(error)),
        }
    }
    Ok(locks)
}

/// Files whose presence decides an artifact's template.
fn template_files(root: &Path, recipe: &Recipe) -> Vec<String> {
    let mut files = Vec::new();
    for artifact in &recipe.artifacts {
        for name in ["Makefile", "makefile", "GNUmakefile", "Cargo.toml"] {
            let path = PathBuf::from(&artifact.path).join(name);
            let path = path.strip_prefix(".").unwrap_or(&path).to_path_buf();
            if root.join(&path).exists() {
                files.push(path.display().to_string());
            }
        }
    }
    files
}

//! Other registries: from `server.toml` to the registry's seam, and what a person asks about them.

use std::io::Read as _;
use std::path::Path;
use std::sync::Arc;

use adamant_api::{
    Class, Upstream as Shown, UpstreamChecked, UpstreamFailed, UpstreamMoved, UpstreamTag, UpstreamUpdated,
};
use adamant_digest::Digest;
use adamant_fetch::FetchError;
use adamant_fetch::remote::{self, Credentials, Remote, RemoteConfig};
use adamant_ledger::SqlLedger;
use adamant_oci::{ContentDigest, Reference, RepositoryName, Tag, media};
use adamant_registry::{PullError, Registry, Upstream, UpstreamConfig, UpstreamError};
use adamant_store::{BlobStore, BoxFuture, Ledger as _};

use crate::error::Problem;
use crate::platform::{Config, Platform};
use crate::settings::UpstreamSettings;

/// Every type of manifest that can be kept.
const ACCEPT: [&str; 4] = [media::OCI_INDEX, media::OCI_MANIFEST, media::DOCKER_LIST, media::DOCKER_MANIFEST];
/// Longest file of a password or of certificates, in bytes.
const MAX_FILE: u64 = 1 << 20;
/// Tags shown of one upstream.
const SHOWN: usize = 1_000;
/// Tags checked in one step.
const PAGE: usize = 100;
/// An upstream that fails so often in a row is left alone until the next check.
const PATIENCE: usize = 3;

/// A registry over the network, filling a store.
struct Fetched {
    remote: Remote,
    blobs: Arc<dyn BlobStore>,
    manifest_bytes: u64,
}

impl Upstream for Fetched {
    fn manifest<'a>(
        &'a self,
        repository: &'a str,
        reference: &'a Reference,
    ) -> BoxFuture<'a, Result<Vec<u8>, UpstreamError>> {
        Box::pin(async move {
            let reference = reference.to_string();
            let fetched = self.remote.manifest(repository, &reference, &ACCEPT, self.manifest_bytes).await;
            fetched.map_err(|error| explain(&error))
        })
    }

    fn digest<'a>(&'a self, repository: &'a str, tag: &'a Tag) -> BoxFuture<'a, Result<Option<Digest>, UpstreamError>> {
        Box::pin(
            async move { self.remote.digest(repository, tag.as_str(), &ACCEPT).await.map_err(|error| explain(&error)) },
        )
    }

    fn blob<'a>(
        &'a self,
        repository: &'a str,
        named: &'a ContentDigest,
        size: u64,
    ) -> BoxFuture<'a, Result<Digest, UpstreamError>> {
        Box::pin(async move {
            let expected = named.sha256().ok();
            let fetched = self.remote.blob(repository, &named.to_string(), expected, size, &*self.blobs).await;
            fetched.map_err(|error| explain(&error))
        })
    }
}

/// The texts of fetching are about locks where they differ from these.
fn explain(error: &FetchError) -> UpstreamError {
    match error {
        FetchError::Gone { url, status } => UpstreamError::Absent(format!("{url} answers HTTP {status}")),
        FetchError::Status { url, status: status @ (401 | 403) } => UpstreamError::Failed(format!(
            "{url} refuses (HTTP {status}): it is not there, or other credentials are needed"
        )),
        FetchError::Mismatch { url, found, .. } => {
            UpstreamError::Failed(format!("{url} gives other bytes than it names: {found}"))
        }
        FetchError::Size { url, expected, found, .. } => {
            UpstreamError::Failed(format!("{url} gives {found} bytes instead of {expected}"))
        }
        other => UpstreamError::Failed(other.to_string()),
    }
}

/// The upstreams of `server.toml`. Asks none of them yet.
pub(crate) async fn open(
    config: &Config,
    blobs: &Arc<dyn BlobStore>,
    ledger: &SqlLedger,
) -> Result<Vec<UpstreamConfig>, Problem> {
    let mut opened: Vec<UpstreamConfig> = Vec::new();
    for settings in &config.settings.upstreams {
        let name = &settings.name;
        let refuse = |cause: &dyn std::fmt::Display| {
            Problem::usage(format!("the upstream `{name}` in server.toml cannot be used")).cause(cause)
        };
        if name.contains('/') || name.parse::<RepositoryName>().is_err() {
            return Err(refuse(&"its name is no first part of a repository name")
                .hint("lower-case letters and digits with inner `.`, `-` or `_`, like a host name"));
        }
        if opened.iter().any(|other| other.name == *name) {
            return Err(refuse(&"another one has the same name"));
        }
        if ledger.chain_head(&crate::facts::policy(name)).await?.is_some() {
            return Err(refuse(&"a project has the same name").hint("name it by its host, `docker.io` for example"));
        }
        let variable = |name: &str| std::env::var(name).ok();
        let credentials = credentials(settings, &variable).map_err(|cause| refuse(&cause))?;
        let certificates = settings.ca_file.as_deref().map(read).transpose().map_err(|cause| refuse(&cause))?;
        let remote = Remote::new(RemoteConfig {
            url: settings.url.clone(),
            credentials,
            token_host: settings.token_host.clone(),
            certificates,
            proxies: crate::opening::proxies(config),
            allowed_hosts: config.allow_private.clone(),
            control_addresses: vec![config.listen.ip()],
            limits: remote::limits(),
        });
        let remote = remote.map_err(|error| refuse(&error))?;
        let manifest_bytes = adamant_registry::Limits::default().manifest_bytes as u64;
        opened.push(UpstreamConfig {
            name: name.clone(),
            url: settings.url.trim_end_matches('/').to_owned(),
            repositories: settings.repositories.clone(),
            heal: settings.heal,
            source: Arc::new(Fetched { remote, blobs: Arc::clone(blobs), manifest_bytes }),
        });
    }
    Ok(opened)
}

fn credentials(
    settings: &UpstreamSettings,
    variable: &dyn Fn(&str) -> Option<String>,
) -> Result<Option<Credentials>, String> {
    let password = match (&settings.password_file, &settings.password_env) {
        (Some(_), Some(_)) => return Err("`password-file` and `password-env` are both there: keep one".to_owned()),
        (Some(file), None) => {
            let text = String::from_utf8(read(file)?).map_err(|_| format!("{} is not text", file.display()))?;
            text.trim_end_matches(['\r', '\n']).to_owned()
        }
        (None, Some(name)) => variable(name).ok_or_else(|| format!("the environment has no variable `{name}`"))?,
        (None, None) if settings.user.is_some() => {
            return Err("it has a `user` and no `password-file` or `password-env`".to_owned());
        }
        (None, None) => return Ok(None),
    };
    let user = settings.user.clone().ok_or("it has a password and no `user`")?;
    Ok(Some(Credentials { user, password }))
}

fn read(path: &Path) -> Result<Vec<u8>, String> {
    let mut bytes = Vec::new();
    let file = std::fs::File::open(path).map_err(|error| format!("{}: {error}", path.display()))?;
    file.take(MAX_FILE + 1).read_to_end(&mut bytes).map_err(|error| format!("{}: {error}", path.display()))?;
    if bytes.len() as u64 > MAX_FILE {
        return Err(format!("{} is longer than {MAX_FILE} bytes", path.display()));
    }
    Ok(bytes)
}

/// `NAME/REPOSITORY:TAG`.
fn tag_of(text: &str) -> Option<(RepositoryName, Tag)> {
    let (repository, tag) = text.split_once(':')?;
    Some((repository.parse().ok()?, tag.parse().ok()?))
}

fn problem(error: &PullError) -> Problem {
    let class = match error {
        PullError::NoUpstream(_) | PullError::Dated { .. } | PullError::Manifest(_) => Class::Usage,
        PullError::NotAllowed { .. } => Class::Denied,
        PullError::Upstream { .. } | PullError::Unfit { .. } | PullError::Busy | PullError::Slow(_) => {
            Class::Unavailable
        }
        _ => Class::Internal,
    };
    Problem::new(class, error.to_string())
}

impl Platform {
    /// What is read through other registries: all of them, or one.
    pub(crate) async fn upstreams(&self, name: Option<&str>) -> Result<Vec<Shown>, Problem> {
        let mut shown = Vec::new();
        for settings in self.known_upstreams(name)? {
            let prefix = format!("{}/", settings.name);
            let (followed, more) = self.registry.followed(&prefix, "", SHOWN).await?;
            let tag = |followed: adamant_registry::Followed| UpstreamTag {
                name: format!("{}:{}", followed.repository, followed.tag),
                digest: followed.bound.digest,
                by: followed.bound.by,
                at: followed.bound.at,
                moved: followed.moved,
            };
            shown.push(Shown {
                name: settings.name.clone(),
                url: settings.url.clone(),
                repositories: settings.repositories.iter().map(ToString::to_string).collect(),
                heal: settings.heal,
                tags: followed.into_iter().map(tag).collect(),
                more: more.is_some(),
            });
        }
        Ok(shown)
    }

    fn known_upstreams(&self, name: Option<&str>) -> Result<Vec<&UpstreamSettings>, Problem> {
        let known: Vec<_> = self
            .config
            .settings
            .upstreams
            .iter()
            .filter(|upstream| name.is_none_or(|name| name == upstream.name))
            .collect();
        match name {
            Some(name) if known.is_empty() => Err(Problem::usage(format!("there is no upstream `{name}`"))
                .hint("`[[upstream]]` in server.toml makes one; `adamant upstream list` shows them")),
            _ => Ok(known),
        }
    }

    /// Compares bound tags with those of their upstreams: all, those of an upstream or of a
    /// repository, or one.
    pub(crate) async fn check_upstreams(
        &self,
        what: Option<&str>,
        say: crate::ship::Say<'_>,
    ) -> Result<UpstreamChecked, Problem> {
        let first = what.map(|what| what.split('/').next().unwrap_or(what));
        let mut found = UpstreamChecked::default();
        if let Some((repository, tag)) = what.and_then(tag_of) {
            self.known_upstreams(first)?;
            self.check_tag(&repository, &tag, &mut found, say).await?;
            return Ok(found);
        }
        for upstream in self.known_upstreams(first)? {
            let prefix = match what.filter(|what| what.contains('/')) {
                Some(repository) => format!("{repository}:"),
                None => format!("{}/", upstream.name),
            };
            let mut after = String::new();
            let mut failures = 0;
            loop {
                let (page, next) = self.registry.followed(&prefix, &after, PAGE).await?;
                for followed in page.iter().filter(|followed| Registry::is_checked(&followed.tag)) {
                    let fine = self.check_tag(&followed.repository, &followed.tag, &mut found, say).await?;
                    failures = if fine { 0 } else { failures + 1 };
                    if failures >= PATIENCE {
                        break;
                    }
                }
                let Some(next) = next.filter(|_| failures < PATIENCE) else { break };
                after = next;
            }
            if failures >= PATIENCE {
                say(format!("{} failed {PATIENCE} times in a row: the rest of it is not checked", upstream.name));
            }
        }
        Ok(found)
    }

    /// False if the upstream could not be asked.
    async fn check_tag(
        &self,
        repository: &RepositoryName,
        tag: &Tag,
        found: &mut UpstreamChecked,
        say: crate::ship::Say<'_>,
    ) -> Result<bool, Problem> {
        let name = format!("{repository}:{tag}");
        match self.registry.check_upstream(repository, tag).await {
            Ok(checked) => {
                found.checked += 1;
                if checked.bound != checked.now {
                    say(format!("{name} has moved"));
                    found.moved.push(UpstreamMoved { name, bound: checked.bound, now: checked.now });
                }
                Ok(true)
            }
            Err(error) => match &*error {
                PullError::Upstream { .. } | PullError::Unfit { .. } | PullError::NotAllowed { .. } => {
                    found.failed.push(UpstreamFailed { name, cause: error.to_string() });
                    Ok(matches!(&*error, PullError::Upstream { source: UpstreamError::Absent(_), .. }))
                }
                other => Err(problem(other)),
            },
        }
    }

    /// Binds what a tag leads to now to a new tag with the date.
    pub(crate) async fn update_upstream(&self, name: &str, by: &str) -> Result<UpstreamUpdated, Problem> {
        let (repository, tag) = tag_of(name).ok_or_else(|| {
            Problem::usage(format!("`{name}` is not NAME/REPOSITORY:TAG"))
                .hint("`adamant upstream list` shows what is bound")
        })?;
        let updated =
            self.registry.update_from_upstream(&repository, &tag, by).await.map_err(|error| problem(&error))?;
        Ok(UpstreamUpdated {
            name: name.to_owned(),
            bound: updated.bound,
            updated: format!("{repository}:{}", updated.tag),
            digest: updated.digest,
            new: updated.new,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(more: &str) -> UpstreamSettings {
        let text = format!("[[upstream]]\nname = \"a\"\nurl = \"https://a.example\"\n{more}");
        toml::from_str::<crate::Settings>(&text).unwrap().upstreams.remove(0)
    }

    #[test]
    fn credentials_come_from_a_file_or_a_variable_and_are_not_shown() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "secret\n").unwrap();
        let variable = |name: &str| (name == "PASSWORD").then(|| "hidden".to_owned());
        let read = |more: &str| credentials(&settings(more), &variable);
        let of = |more: &str| read(more).unwrap().unwrap();
        let from_file = of(&format!("user = \"ann\"\npassword-file = \"{}\"", file.path().display()));
        assert_eq!((from_file.user.as_str(), from_file.password.as_str()), ("ann", "secret"));
        assert!(!format!("{from_file:?}").contains("secret"));
        assert_eq!(of("user = \"ann\"\npassword-env = \"PASSWORD\"").password, "hidden");
        assert!(read("").unwrap().is_none());
        for bad in [
            "user = \"ann\"",
            "password-env = \"PASSWORD\"",
            "user = \"ann\"\npassword-env = \"OTHER\"",
            "user = \"ann\"\npassword-env = \"PASSWORD\"\npassword-file = \"/dev/null\"",
            "user = \"ann\"\npassword-file = \"/does/not/exist\"",
        ] {
            assert!(read(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn names_of_tags() {
        assert!(tag_of("docker.example/library/x:1").is_some());
        for bad in ["docker.example/library/x", "docker.example", "a/b@sha256:0", "a/b:", "A/b:1"] {
            assert_eq!(tag_of(bad), None, "{bad}");
        }
    }
}

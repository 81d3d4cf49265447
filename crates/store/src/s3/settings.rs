//! What a bucket needs to be reached.

use std::fmt;
use std::path::{Path, PathBuf};

use rusty_s3::{Bucket, Credentials, UrlStyle};

/// Longest credentials file read, in bytes.
const MAX_FILE_BYTES: usize = 64 << 10;

/// An access key. `Debug` shows no secret.
#[derive(Clone)]
pub struct S3Credentials(pub(super) Credentials);

/// A bucket and how to reach it.
#[derive(Debug, Clone)]
pub struct S3Settings {
    pub(super) bucket: Bucket,
    /// Empty, or ends with `/`.
    pub(super) prefix: String,
    pub(super) credentials: S3Credentials,
}

/// Why a bucket cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum S3SettingsError {
    /// Not `s3://bucket/prefix`.
    #[error(
        "`{0}` does not name a bucket: write `s3://bucket` or `s3://bucket/prefix`, with letters, digits, `.`, `-`, `_`"
    )]
    Url(String),
    /// Not an address.
    #[error("the endpoint `{endpoint}` cannot be used: {reason}; write `https://host` or `http://host:port`")]
    Endpoint {
        /// What was given.
        endpoint: String,
        /// What is wrong with it.
        reason: String,
    },
    /// No access key anywhere.
    #[error(
        "there is no access key for the bucket: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or name a file with them"
    )]
    NoCredentials,
    /// The file of access keys.
    #[error("the credentials file {} cannot be used: {reason}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
}

impl S3Settings {
    /// `url` is `s3://bucket` or `s3://bucket/prefix`. Without `endpoint` it is AWS in `region`.
    /// `path_style` puts the bucket into the path instead of the host name, as most stores of one's
    /// own need it.
    pub fn new(
        url: &str,
        endpoint: Option<&str>,
        region: &str,
        path_style: bool,
        credentials: S3Credentials,
    ) -> Result<Self, S3SettingsError> {
        let bad_url = || S3SettingsError::Url(url.chars().take(200).collect());
        let rest = url.strip_prefix("s3://").ok_or_else(bad_url)?;
        let (name, prefix) = rest.split_once('/').unwrap_or((rest, ""));
        let prefix = prefix.trim_end_matches('/');
        let usable = |part: &str| {
            let letters = part.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_'));
            // Dots alone would be resolved as a path and lead to another object or bucket.
            letters && !part.bytes().all(|b| b == b'.')
        };
        if !usable(name) || (!prefix.is_empty() && !prefix.split('/').all(usable)) || url.len() > 500 {
            return Err(bad_url());
        }
        let aws = format!("https://s3.{region}.amazonaws.com");
        let endpoint = endpoint.unwrap_or(&aws);
        let bad = |reason: String| S3SettingsError::Endpoint { endpoint: endpoint.to_owned(), reason };
        let parsed = endpoint.parse().map_err(|error| bad(format!("{error}")))?;
        let style = if path_style { UrlStyle::Path } else { UrlStyle::VirtualHost };
        let bucket = Bucket::new(parsed, style, name.to_owned(), region.to_owned()).map_err(|e| bad(e.to_string()))?;
        let prefix = if prefix.is_empty() { String::new() } else { format!("{prefix}/") };
        Ok(Self { bucket, prefix, credentials })
    }
}

impl S3Credentials {
    /// From the usual variables: `AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY`, `AWS_SESSION_TOKEN`.
    pub fn from_environment(variable: &dyn Fn(&str) -> Option<String>) -> Result<Self, S3SettingsError> {
        let get = |name: &str| variable(name).filter(|value| !value.is_empty());
        let (Some(key), Some(secret)) = (get("AWS_ACCESS_KEY_ID"), get("AWS_SECRET_ACCESS_KEY")) else {
            return Err(S3SettingsError::NoCredentials);
        };
        Ok(Self::new(key, secret, get("AWS_SESSION_TOKEN")))
    }

    /// From a file of the form that AWS's tools use, section `[default]`. Blocking.
    pub fn from_file(path: &Path) -> Result<Self, S3SettingsError> {
        use std::os::unix::fs::PermissionsExt as _;
        let failed = |reason: String| S3SettingsError::File { path: path.to_owned(), reason };
        let meta = std::fs::metadata(path).map_err(|error| failed(error.to_string()))?;
        let mode = meta.permissions().mode() & 0o777;
        if mode & 0o077 != 0 {
            return Err(failed(format!("others can read it (mode {mode:o}): run `chmod 600` on it")));
        }
        if meta.len() > MAX_FILE_BYTES as u64 {
            return Err(failed(format!("it is longer than {MAX_FILE_BYTES} bytes")));
        }
        let text = std::fs::read_to_string(path).map_err(|error| failed(error.to_string()))?;
        Self::parse(&text).ok_or_else(|| {
            failed("it has no section `[default]` with aws_access_key_id and aws_secret_access_key".to_owned())
        })
    }

    fn new(key: String, secret: String, token: Option<String>) -> Self {
        Self(match token {
            Some(token) => Credentials::new_with_token(key, secret, token),
            None => Credentials::new(key, secret),
        })
    }

    pub(super) fn parse(text: &str) -> Option<Self> {
        let mut ours = false;
        let (mut key, mut secret, mut token) = (None, None, None);
        for line in text.lines().map(str::trim).filter(|line| !line.starts_with(['#', ';'])) {
            if line.starts_with('[') {
                ours = line == "[default]";
            } else if let Some((name, value)) = line.split_once('=').filter(|_| ours) {
                let value = Some(value.trim().to_owned()).filter(|value| !value.is_empty());
                match name.trim() {
                    "aws_access_key_id" => key = value,
                    "aws_secret_access_key" => secret = value,
                    "aws_session_token" => token = value,
                    _ => {}
                }
            }
        }
        Some(Self::new(key?, secret?, token))
    }
}

impl fmt::Debug for S3Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "S3Credentials({})", self.0.key())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn some() -> S3Credentials {
        S3Credentials::new("id".to_owned(), "very secret".to_owned(), None)
    }

    #[test]
    fn understands_buckets() {
        let check = |url: &str, expect: Option<(&str, &str)>| {
            let settings = S3Settings::new(url, Some("http://127.0.0.1:9000"), "r", true, some()).ok();
            let found = settings.as_ref().map(|s| (s.bucket.name(), s.prefix.as_str()));
            assert_eq!(found, expect, "{url}");
        };
        check("s3://bucket", Some(("bucket", "")));
        check("s3://bucket/", Some(("bucket", "")));
        check("s3://bucket/a/b/", Some(("bucket", "a/b/")));
        for bad in [
            "bucket",
            "s3://",
            "s3:///a",
            "s3://b/..",
            "s3://b/a//c",
            "s3://b/./a",
            "s3://../a",
            "s3://b/ä",
            "s3://b/a?x",
        ] {
            check(bad, None);
        }
        assert!(S3Settings::new("s3://b", Some("ftp://x"), "r", true, some()).is_err());
        let aws = S3Settings::new("s3://b", None, "eu-west-1", false, some()).unwrap();
        assert_eq!(aws.bucket.base_url().as_str(), "https://b.s3.eu-west-1.amazonaws.com/");
        assert!(!format!("{aws:?}").contains("very secret"));
    }

    #[test]
    fn reads_access_keys() {
        let text = "[other]\naws_access_key_id = no\n[default]\n# c\naws_access_key_id=id\naws_secret_access_key = s\n";
        let found = S3Credentials::parse(text).unwrap().0;
        assert_eq!((found.key(), found.secret(), found.token()), ("id", "s", None));
        assert!(S3Credentials::parse("[default]\naws_access_key_id=id\n").is_none());
        let variable = |name: &str| Some(name.to_owned());
        let found = S3Credentials::from_environment(&variable).unwrap().0;
        assert_eq!(found.token(), Some("AWS_SESSION_TOKEN"));
        assert!(S3Credentials::from_environment(&|_| None).is_err());
    }

    #[test]
    fn a_file_that_others_can_read_is_refused() {
        use std::os::unix::fs::PermissionsExt as _;
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "[default]\naws_access_key_id=id\naws_secret_access_key=s\n").unwrap();
        S3Credentials::from_file(file.path()).unwrap();
        std::fs::set_permissions(file.path(), std::fs::Permissions::from_mode(0o640)).unwrap();
        let error = S3Credentials::from_file(file.path()).unwrap_err().to_string();
        assert!(error.contains("chmod 600"), "{error}");
    }
}

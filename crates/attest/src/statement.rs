//! in-toto statements, <https://github.com/in-toto/attestation/blob/main/spec/v1/statement.md>.

use adamant_digest::Digest;
use serde_json::{Map, Value, json};

use crate::canonical::{CanonicalError, canonical, parse_strict};
use crate::predicate::Predicate;
use crate::timestamp::parse_time;

/// The `_type` of every statement.
pub const STATEMENT_TYPE: &str = "https://in-toto.io/Statement/v1";

/// The members the ledger adds to a predicate.
const LEDGER_MEMBERS: [&str; 4] = ["recordedAt", "chain", "sequence", "previous"];
const MAX_SUBJECTS: usize = 10_000;
const MAX_NAME_BYTES: usize = 4096;

/// What is said (the predicate) about what (the subjects).
#[derive(Debug, Clone, PartialEq)]
pub struct Statement {
    /// Name and digest of each thing it is about.
    pub subject: Vec<(String, Digest)>,
    /// URI of the predicate's type.
    pub predicate_type: String,
    /// The predicate, with the members the ledger added. Always an object after parsing.
    pub predicate: Value,
}

/// The place of a statement in a chain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    /// Name of the chain.
    pub chain: String,
    /// From 1, without gaps.
    pub sequence: u64,
    /// Digest of the bytes of the statement before; `None` exactly at sequence 1.
    pub previous: Option<Digest>,
}

/// Why bytes are not a statement, or a statement cannot be written.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StatementError {
    /// Not canonicalizable JSON.
    #[error(transparent)]
    Json(#[from] CanonicalError),
    /// A member is missing, unknown or of the wrong shape.
    #[error("member `{0}` is missing, unknown or malformed")]
    Member(String),
    /// `_type` is something else.
    #[error("`_type` is `{0}`, expected `{STATEMENT_TYPE}`")]
    Type(String),
    /// The predicate type is not one of ours.
    #[error("predicate type `{0}` is not known")]
    UnknownPredicate(String),
    /// The predicate does not have the shape its type asks for.
    #[error("predicate of type `{uri}`: {reason}")]
    Predicate {
        /// The type.
        uri: String,
        /// What is wrong.
        reason: String,
    },
}

fn member(name: &str) -> StatementError {
    StatementError::Member(name.chars().take(200).collect())
}

impl Statement {
    /// What the ledger records: `predicate` with `recordedAt` and its place in a chain added.
    pub fn record(
        subject: Vec<(String, Digest)>,
        predicate: &Predicate,
        recorded_at: &str,
        link: Option<&Link>,
    ) -> Result<Self, StatementError> {
        let uri = predicate.uri();
        let wrong = |reason: String| StatementError::Predicate { uri: uri.to_owned(), reason };
        let mut value = predicate.to_value().map_err(|error| wrong(error.to_string()))?;
        let members = value.as_object_mut().ok_or_else(|| wrong("it is not an object".to_owned()))?;
        if let Some(name) = LEDGER_MEMBERS.iter().find(|name| members.contains_key(**name)) {
            return Err(wrong(format!("`{name}` belongs to the ledger")));
        }
        if parse_time(recorded_at).is_none() {
            return Err(member("recordedAt"));
        }
        members.insert("recordedAt".to_owned(), recorded_at.into());
        if let Some(link) = link {
            check_link(link)?;
            members.insert("chain".to_owned(), link.chain.as_str().into());
            members.insert("sequence".to_owned(), link.sequence.into());
            if let Some(previous) = link.previous {
                members.insert("previous".to_owned(), previous.to_string().into());
            }
        }
        Ok(Self { subject, predicate_type: uri.to_owned(), predicate: value })
    }

    /// The canonical bytes: what is signed and kept.
    pub fn to_bytes(&self) -> Result<Vec<u8>, StatementError> {
        if self.subject.len() > MAX_SUBJECTS || self.subject.iter().any(|(name, _)| name.len() > MAX_NAME_BYTES) {
            return Err(member("subject"));
        }
        let subject: Vec<Value> = self
            .subject
            .iter()
            .map(|(name, digest)| json!({"name": name, "digest": {"sha256": digest.hex()}}))
            .collect();
        // Borrowed parts: a provenance predicate is large, and this runs once for every fact.
        let mut out = Vec::with_capacity(1024);
        out.extend_from_slice(b"{\"_type\":");
        out.extend(canonical(&STATEMENT_TYPE.into())?);
        out.extend_from_slice(b",\"predicate\":");
        out.extend(canonical(&self.predicate)?);
        out.extend_from_slice(b",\"predicateType\":");
        out.extend(canonical(&self.predicate_type.as_str().into())?);
        out.extend_from_slice(b",\"subject\":");
        out.extend(canonical(&Value::Array(subject))?);
        out.push(b'}');
        Ok(out)
    }

    /// Reads a statement. Exactly the members of the specification, each once.
    pub fn parse(bytes: &[u8]) -> Result<Self, StatementError> {
        let Value::Object(mut members) = parse_strict(bytes)? else { return Err(member("_type")) };
        match members.remove("_type") {
            Some(Value::String(text)) if text == STATEMENT_TYPE => {}
            Some(Value::String(text)) => return Err(StatementError::Type(text.chars().take(200).collect())),
            _ => return Err(member("_type")),
        }
        let Some(Value::String(predicate_type)) = members.remove("predicateType") else {
            return Err(member("predicateType"));
        };
        let Some(predicate @ Value::Object(_)) = members.remove("predicate") else { return Err(member("predicate")) };
        let Some(Value::Array(subjects)) = members.remove("subject") else { return Err(member("subject")) };
        if let Some(name) = members.keys().next() {
            return Err(member(name));
        }
        if subjects.len() > MAX_SUBJECTS {
            return Err(member("subject"));
        }
        let subject =
            subjects.into_iter().map(parse_subject).collect::<Option<_>>().ok_or_else(|| member("subject"))?;
        Ok(Self { subject, predicate_type, predicate })
    }

    /// The predicate with its type.
    pub fn predicate(&self) -> Result<Predicate, StatementError> {
        match Predicate::from_value(&self.predicate_type, &self.predicate) {
            None => Err(StatementError::UnknownPredicate(self.predicate_type.chars().take(200).collect())),
            Some(Ok(predicate)) => Ok(predicate),
            Some(Err(error)) => {
                Err(StatementError::Predicate { uri: self.predicate_type.clone(), reason: error.to_string() })
            }
        }
    }

    /// When the ledger says it recorded this; the format is checked.
    pub fn recorded_at(&self) -> Result<&str, StatementError> {
        match self.predicate.get("recordedAt") {
            Some(Value::String(text)) if parse_time(text).is_some() => Ok(text),
            _ => Err(member("recordedAt")),
        }
    }

    /// Its place in a chain; `None` if it belongs to none.
    pub fn link(&self) -> Result<Option<Link>, StatementError> {
        let chain = match self.predicate.get("chain") {
            None => {
                let stray = ["sequence", "previous"].into_iter().find(|name| self.predicate.get(name).is_some());
                return stray.map_or(Ok(None), |name| Err(member(name)));
            }
            Some(Value::String(chain)) => chain.clone(),
            Some(_) => return Err(member("chain")),
        };
        let sequence = self.predicate.get("sequence").and_then(Value::as_u64).ok_or_else(|| member("sequence"))?;
        let previous = match self.predicate.get("previous") {
            None => None,
            Some(Value::String(text)) => Some(text.parse().map_err(|_| member("previous"))?),
            Some(_) => return Err(member("previous")),
        };
        let link = Link { chain, sequence, previous };
        check_link(&link)?;
        Ok(Some(link))
    }
}

fn check_link(link: &Link) -> Result<(), StatementError> {
    if link.chain.is_empty() || link.chain.len() > MAX_NAME_BYTES {
        return Err(member("chain"));
    }
    if link.sequence == 0 {
        return Err(member("sequence"));
    }
    if link.previous.is_none() != (link.sequence == 1) {
        return Err(member("previous"));
    }
    Ok(())
}

fn parse_subject(value: Value) -> Option<(String, Digest)> {
    let Value::Object(mut members) = value else { return None };
    let Some(Value::String(name)) = members.remove("name") else { return None };
    let Some(Value::Object(digest)) = members.remove("digest") else { return None };
    if !members.is_empty() || name.len() > MAX_NAME_BYTES || !only_sha256(&digest) {
        return None;
    }
    let digest = Digest::from_hex(digest.get("sha256")?.as_str()?).ok()?;
    Some((name, digest))
}

fn only_sha256(digest: &Map<String, Value>) -> bool {
    digest.len() == 1 && digest.contains_key("sha256")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::predicate::{Binding, BindingKind};

    fn binding() -> Predicate {
        Predicate::Binding(Binding {
            kind: BindingKind::Tag,
            name: "shop/web:1".into(),
            digest: Digest::of(b"x"),
            by: "ann".into(),
            detail: Value::Null,
        })
    }

    fn link() -> Link {
        Link { chain: "c".into(), sequence: 2, previous: Some(Digest::of(b"before")) }
    }

    #[test]
    fn golden_bytes() {
        let statement =
            Statement::record(vec![("s".into(), Digest::of(b""))], &binding(), "2026-01-02T03:04:05Z", Some(&link()))
                .unwrap();
        let bytes = statement.to_bytes().unwrap();
        assert_eq!(
            String::from_utf8(bytes.clone()).unwrap(),
            format!(
                "{{\"_type\":\"https://in-toto.io/Statement/v1\",\"predicate\":{{\"by\":\"ann\",\"chain\":\"c\",\
                 \"digest\":\"{x}\",\"kind\":\"tag\",\"name\":\"shop/web:1\",\"previous\":\"{p}\",\
                 \"recordedAt\":\"2026-01-02T03:04:05Z\",\"sequence\":2}},\
                 \"predicateType\":\"https://adamant.dev/predicate/binding/v1\",\
                 \"subject\":[{{\"digest\":{{\"sha256\":\"{e}\"}},\"name\":\"s\"}}]}}",
                x = Digest::of(b"x"),
                p = Digest::of(b"before"),
                e = Digest::of(b"").hex(),
            )
        );
        assert_eq!(bytes, canonical(&parse_strict(&bytes).unwrap()).unwrap(), "written in pieces, still canonical");
        let again = Statement::parse(&bytes).unwrap();
        assert_eq!(again, statement);
        assert_eq!(again.predicate().unwrap(), binding());
        assert_eq!(again.recorded_at().unwrap(), "2026-01-02T03:04:05Z");
        assert_eq!(again.link().unwrap(), Some(link()));
    }

    #[test]
    fn refuses_other_shapes() {
        let good = Statement::record(vec![], &binding(), "2026-01-02T03:04:05Z", None).unwrap().to_bytes().unwrap();
        let good = String::from_utf8(good).unwrap();
        assert!(Statement::parse(good.as_bytes()).is_ok());
        let check = |from: &str, to: &str| {
            let bad = good.replacen(from, to, 1);
            assert_ne!(bad, good, "{from}");
            Statement::parse(bad.as_bytes()).expect_err(&bad)
        };
        assert!(matches!(check("Statement/v1", "Statement/v0.1"), StatementError::Type(_)));
        assert!(matches!(check("\"_type\"", "\"type\""), StatementError::Member(_)));
        assert!(matches!(check("\"subject\":[]", "\"subject\":[{}]"), StatementError::Member(_)));
        assert!(matches!(check("\"subject\":[]", "\"subject\":[],\"x\":1"), StatementError::Member(_)));
        assert!(matches!(
            check("\"subject\":[]", "\"subject\":[],\"subject\":[]"),
            StatementError::Json(CanonicalError::Duplicate(_))
        ));
        assert!(matches!(
            check("\"subject\":[]", "\"subject\":[{\"name\":\"a\",\"digest\":{\"sha1\":\"00\"}}]"),
            StatementError::Member(_)
        ));
    }

    #[test]
    fn refuses_malformed_ledger_members() {
        let of = |value: Value| Statement { subject: vec![], predicate_type: "x".into(), predicate: value };
        let d = Digest::of(b"").to_string();
        for bad in [
            json!({"sequence": 1}),
            json!({"previous": d}),
            json!({"chain": 1, "sequence": 1}),
            json!({"chain": "", "sequence": 1}),
            json!({"chain": "c"}),
            json!({"chain": "c", "sequence": 0}),
            json!({"chain": "c", "sequence": -1}),
            json!({"chain": "c", "sequence": 1, "previous": d}),
            json!({"chain": "c", "sequence": 2}),
            json!({"chain": "c", "sequence": 2, "previous": "sha256:00"}),
        ] {
            assert!(of(bad.clone()).link().is_err(), "{bad}");
        }
        assert_eq!(of(json!({})).link(), Ok(None));
        assert!(of(json!({})).recorded_at().is_err());
        assert!(of(json!({"recordedAt": "2026-01-02"})).recorded_at().is_err());
        assert!(Statement::record(vec![], &binding(), "yesterday", None).is_err());
    }
}

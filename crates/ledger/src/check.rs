//! Comparing everything stored with what the entries say.

use std::collections::{HashMap, HashSet};

use adamant_attest::predicate::{self, BindingKind, Predicate, Role};
use adamant_attest::{Envelope, PublicKey, Statement, format_time, leaf, parse_time};
use adamant_digest::Digest;
use adamant_store::LedgerError;
use adamant_tlog::{Checkpoint, VerifierKey, leaf_hash};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use crate::db::{Conn, Dialect, Query, Row};
use crate::keys::{TrustValues, algorithm};
use crate::open::SqlLedger;
use crate::rebuild::{self, PAGE};
use crate::schema::Found;
use crate::tree::{self, Edge};
use crate::views::{Place, Rows};
use crate::writer::HeadRow;
use crate::{schema, sql};

/// Findings after which a check stops: the first ones tell enough.
const MAX_FINDINGS: usize = 1_000;

/// Something that is not as it must be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// Table and row: `entries 17`, `bindings tag shop/web:1`, `head`, `tiles 0/3`.
    pub object: String,
    /// What differs.
    pub problem: String,
}

impl std::fmt::Display for Finding {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.object, self.problem)
    }
}

impl SqlLedger {
    /// Checks all that is stored, on one consistent snapshot, beside a writer if there is one:
    /// every statement, envelope, leaf, signature and chain; tree, tiles and checkpoint; every
    /// view against one made anew from the entries, and all against [`SqlLedger::trust_values`].
    /// Empty if all is well, at most 1,000 findings.
    pub async fn check(&self) -> Result<Vec<Finding>, LedgerError> {
        let mut conn = self.connect().await?;
        let mut check = Check::new(self.trust_values());
        let done = check.all(&mut conn).await;
        conn.close().await;
        match done {
            Ok(()) => {}
            // What the database itself cannot read is a finding, not a failure of the check.
            Err(LedgerError::Damaged(problem)) => check.find("database", problem),
            Err(other) => return Err(other),
        }
        Ok(check.findings)
    }
}

struct Check<'a> {
    trust: &'a TrustValues,
    findings: Vec<Finding>,
    /// Keys that may sign at the entry in hand, and for what.
    keys: HashMap<String, (Role, PublicKey)>,
    chains: HashMap<String, (u64, Digest)>,
    /// Unix seconds of the entry before.
    before: i64,
    edge: Edge,
}

impl<'a> Check<'a> {
    fn new(trust: &'a TrustValues) -> Self {
        let (keys, chains) = (HashMap::new(), HashMap::new());
        Self { trust, findings: Vec::new(), keys, chains, before: i64::MIN, edge: Edge::empty() }
    }

    fn find(&mut self, object: impl Into<String>, problem: impl Into<String>) {
        if self.findings.len() < MAX_FINDINGS {
            self.findings.push(Finding { object: object.into(), problem: problem.into() });
        }
    }

    async fn all(&mut self, conn: &mut Conn<'_>) -> Result<(), LedgerError> {
        let mut tx = conn.begin_snapshot().await?;
        if schema::look(&mut tx).await? == Found::OldViews {
            self.find("meta", "the views are said to be of an earlier version: the next start makes them again");
        }
        for problem in schema::differences(&mut tx).await? {
            self.find("schema", problem);
        }
        if tx.dialect() == Dialect::Sqlite {
            for row in Query::new("PRAGMA main.quick_check(100)").fetch_all(&mut tx).await? {
                let text: String = row.get(0)?;
                if text != "ok" {
                    self.find("database", text);
                }
            }
        }
        schema::create_views(&mut tx, Place::Temp).await?;
        self.entries(&mut tx).await?;
        self.tree(&mut tx).await?;
        for (table, columns, key) in schema::VIEW_COLUMNS {
            self.view(&mut tx, table, columns, key).await?;
        }
        tx.rollback().await
    }

    async fn entries(&mut self, conn: &mut Conn<'_>) -> Result<(), LedgerError> {
        let mut next = i64::MIN;
        let mut expected = 0i64;
        loop {
            let page = Query::new(
                "SELECT idx, recorded_at, statement, envelope, leaf FROM entries WHERE idx >= $1 ORDER BY idx LIMIT $2",
            )
            .bind(next)
            .bind(PAGE)
            .fetch_all(&mut *conn)
            .await?;
            let Some(last) = page.last() else { break };
            next = last.get::<i64>(0)?.saturating_add(1);
            let mut rows = Rows::default();
            let mut law = HashMap::new();
            for row in &page {
                let index: i64 = row.get(0)?;
                if index != expected {
                    self.find(format!("entries {expected}"), format!("missing: the next entry is {index}"));
                }
                expected = index.saturating_add(1);
                self.entry(index, row, &mut rows, &mut law)?;
            }
            self.law(conn, law).await?;
            rows.insert(conn, Place::Temp).await?;
            let full = self.edge.take_full();
            self.tiles(conn, full).await?;
        }
        Ok(())
    }

    fn entry(
        &mut self,
        index: i64,
        row: &Row,
        rows: &mut Rows,
        law: &mut HashMap<(BindingKind, String), (Digest, i64)>,
    ) -> Result<(), LedgerError> {
        let object = format!("entries {index}");
        let recorded_at: i64 = row.get(1)?;
        let (bytes, envelope, stored): (&[u8], &[u8], &[u8]) = (row.get(2)?, row.get(3)?, row.get(4)?);
        self.edge.append(leaf_hash(stored));
        let digest = Digest::of(bytes);
        let statement = match Statement::parse(bytes) {
            Ok(statement) => statement,
            Err(error) => {
                self.find(object, format!("the statement cannot be read: {error}"));
                return Ok(());
            }
        };
        match statement.recorded_at().map(parse_time) {
            Ok(Some(time)) => {
                if time != recorded_at {
                    let column = format_time(recorded_at).unwrap_or_else(|| recorded_at.to_string());
                    self.find(&object, format!("recorded_at is {column}, the statement says {}", said(&statement)));
                }
                if time < self.before {
                    self.find(&object, format!("recorded at {}, before the entry ahead of it", said(&statement)));
                }
                self.before = self.before.max(time);
            }
            _ => self.find(&object, "the statement does not say when it was recorded"),
        }
        self.chain(&object, digest, &statement);
        match statement.predicate() {
            Ok(fact) => {
                for (kind, name, digest) in predicate::binds(&fact) {
                    let (bound, first) = *law.entry((kind, name.clone())).or_insert((digest, index));
                    if bound != digest {
                        let text =
                            format!("binds the {} `{name}` to {digest}, entry {first} to {bound}", kind.as_str());
                        self.find(&object, text);
                    }
                }
                // Validity goes by log index: a key signs from the entry that introduces it on.
                if let Predicate::Key(key) = &fact {
                    self.key(&object, index, key);
                }
            }
            Err(error) => self.find(&object, error.to_string()),
        }
        self.signature(&object, bytes, envelope, stored);
        if let Err(problem) = rebuild::add_parsed(rows, index, recorded_at, digest, &statement) {
            self.find(&object, format!("the views cannot show it: {problem}"));
        }
        Ok(())
    }

    fn chain(&mut self, object: &str, digest: Digest, statement: &Statement) {
        match statement.link() {
            Ok(Some(link)) => {
                let (sequence, previous) =
                    self.chains.get(&link.chain).map_or((1, None), |(last, digest)| (last + 1, Some(*digest)));
                if link.sequence != sequence {
                    let text = format!("is {} in chain `{}`, expected {sequence}", link.sequence, link.chain);
                    self.find(object, text);
                } else if link.previous != previous {
                    let text = format!("does not follow the statement before it in chain `{}`", link.chain);
                    self.find(object, text);
                }
                self.chains.insert(link.chain, (link.sequence, digest));
            }
            Ok(None) => {}
            Err(error) => self.find(object, error.to_string()),
        }
    }

    fn key(&mut self, object: &str, index: i64, fact: &predicate::Key) {
        let key = STANDARD.decode(&fact.public_key).ok().and_then(|der| PublicKey::from_spki_der(&der).ok());
        let Some(key) = key.filter(|key| key.keyid() == fact.keyid && key.algorithm() == algorithm(fact.role)) else {
            self.find(object, format!("introduces a {} key that is none", fact.role.as_str()));
            return;
        };
        if index == 0 && (key != self.trust.root || fact.role != Role::Control) {
            let text = format!("introduces {} as the root, trusted is {}", key.keyid(), self.trust.root.keyid());
            self.find(object, text);
        }
        if fact.action == "introduced" {
            self.keys.insert(key.keyid().to_owned(), (fact.role, key));
        } else {
            self.keys.remove(key.keyid());
        }
    }

    fn signature(&mut self, object: &str, bytes: &[u8], envelope: &[u8], stored: &[u8]) {
        let envelope = match Envelope::parse(envelope) {
            Ok(parsed) => {
                if parsed.to_bytes() != envelope {
                    self.find(object, "the envelope is not spelled as it was written");
                }
                parsed
            }
            Err(error) => {
                self.find(object, format!("the envelope cannot be read: {error}"));
                return;
            }
        };
        if envelope.payload != bytes {
            self.find(object, "the statement is not the one in the envelope");
        }
        let Some((role, key)) = self.keys.get(&envelope.keyid) else {
            self.find(object, format!("signed by {}, which is no key of this ledger at this entry", envelope.keyid));
            return;
        };
        if *role == Role::Log {
            self.find(object, "signed by the log key, which signs checkpoints alone");
            return;
        }
        let right = leaf(&envelope, key);
        let verified = envelope.verify(key);
        if right != stored {
            self.find(object, "the leaf is not the one of the envelope");
        }
        if let Err(error) = verified {
            self.find(object, error.to_string());
        }
    }

    /// Names of this page that an earlier page bound to something else.
    async fn law(
        &mut self,
        conn: &mut Conn<'_>,
        bound: HashMap<(BindingKind, String), (Digest, i64)>,
    ) -> Result<(), LedgerError> {
        let names: HashSet<(&str, &str)> = bound.keys().map(|(kind, name)| (kind.as_str(), name.as_str())).collect();
        let names = serde_json::to_string(&names).map_err(|error| crate::error::damaged(error.to_string()))?;
        let rows = Query::new(conn.dialect().pick([
            "SELECT b.kind, b.name, b.digest, b.idx, b.by_whom, b.recorded_at, b.statement, b.sequence
             FROM json_each($1) AS q CROSS JOIN fresh_bindings AS b
             ON b.kind = json_extract(q.value, '$[0]') AND b.name = json_extract(q.value, '$[1]')",
            "SELECT b.kind, b.name, b.digest, b.idx, b.by_whom, b.recorded_at, b.statement, b.sequence
             FROM json_array_elements($1::json) AS q(value) JOIN fresh_bindings AS b
             ON b.kind = q.value->>0 AND b.name = q.value->>1",
        ]))
        .bind(names)
        .fetch_all(conn)
        .await?;
        for row in rows {
            let (name, earlier) = crate::writer::binding(&row)?;
            if let Some((digest, index)) = bound.get(&name).filter(|(digest, _)| *digest != earlier.digest) {
                let (kind, name) = (name.0.as_str(), name.1);
                let text =
                    format!("binds the {kind} `{name}` to {digest}, entry {} to {}", earlier.index, earlier.digest);
                self.find(format!("entries {index}"), text);
            }
        }
        Ok(())
    }

    async fn tree(&mut self, conn: &mut Conn<'_>) -> Result<(), LedgerError> {
        let edge = std::mem::replace(&mut self.edge, Edge::empty());
        let range = edge.range.clone();
        self.tiles(conn, edge.into_tiles()).await?;
        let extra = Query::new(
            "SELECT level, idx FROM tiles WHERE level NOT BETWEEN 0 AND 7 OR idx < 0
             OR idx > (($1 >> CAST(8 * level AS INTEGER)) - 1) / 256 OR ($1 >> CAST(8 * level AS INTEGER)) = 0
             LIMIT 100",
        )
        .bind(sql::signed(range.size())?)
        .fetch_all(&mut *conn)
        .await?;
        for row in extra {
            let (level, index): (i64, i64) = (row.get(0)?, row.get(1)?);
            self.find(format!("tiles {level}/{index}"), "no tree of this size has such a tile");
        }
        let head = match HeadRow::load(conn).await {
            Ok(Some(head)) => head,
            Ok(None) => {
                self.find("head", "the row is missing");
                return Ok(());
            }
            Err(LedgerError::Damaged(problem)) => {
                self.find("head", problem.trim_start_matches("head: "));
                return Ok(());
            }
            Err(other) => return Err(other),
        };
        if head.range.size() != range.size() {
            let text = format!("size is {}, there are {} entries", head.range.size(), range.size());
            self.find("head", text);
        } else if head.range != range {
            self.find("head", "the compact range is not the one of the entries");
        }
        if head.recorded_at != self.before {
            self.find("head", format!("recorded_at is {}, the last entry says {}", head.recorded_at, self.before));
        }
        let key: Result<VerifierKey, _> = self.trust.log.parse();
        let verified = key.map_err(|error| error.to_string()).and_then(|key| {
            Checkpoint::verify(&head.checkpoint, &self.trust.origin, &key).map_err(|error| error.to_string())
        });
        match verified {
            Ok((checkpoint, note)) => {
                if checkpoint.size != range.size() || checkpoint.root != range.root() {
                    let text = format!("the checkpoint of {} entries is not the one of these entries", checkpoint.size);
                    self.find("head", text);
                }
                if note.to_string() != head.checkpoint {
                    self.find("head", "the checkpoint is not spelled as it was written");
                }
            }
            Err(error) => self.find("head", format!("the checkpoint does not hold: {error}")),
        }
        Ok(())
    }

    async fn tiles(&mut self, conn: &mut Conn<'_>, right: Vec<(tree::Place, Vec<u8>)>) -> Result<(), LedgerError> {
        let places: Vec<tree::Place> = right.iter().map(|(place, _)| *place).collect();
        let stored = tree::load(conn, &places).await?;
        for ((level, index), hashes) in right {
            let problem = match stored.get(&(level, index)) {
                None => "missing",
                Some(found) if *found != hashes => "the hashes are not those of the entries",
                Some(_) => continue,
            };
            self.find(format!("tiles {level}/{index}"), problem);
        }
        Ok(())
    }

    /// Compares a view with the one made anew; `key` columns name a row.
    async fn view(
        &mut self,
        conn: &mut Conn<'_>,
        table: &str,
        columns: &[&str],
        key: usize,
    ) -> Result<(), LedgerError> {
        let dialect = conn.dialect();
        let shown = |side: &str, columns: &[&str]| {
            let text = |column: &&str| match dialect {
                Dialect::Sqlite => format!(
                    "CASE typeof({side}.{column}) WHEN 'blob' THEN lower(hex({side}.{column})) ELSE CAST({side}.{column} AS TEXT) END"
                ),
                Dialect::Postgres if matches!(*column, "digest" | "statement" | "offered") => {
                    format!("encode({side}.{column}, 'hex')")
                }
                Dialect::Postgres => format!("CAST({side}.{column} AS TEXT)"),
            };
            columns.iter().map(text).collect::<Vec<_>>().join(" || ' ' || ")
        };
        let names = &columns[..key];
        let join = names.iter().map(|name| format!("h.{name} = r.{name}")).collect::<Vec<_>>().join(" AND ");
        let values = &columns[key..];
        let differs =
            values.iter().map(|name| format!("h.{name} IS DISTINCT FROM r.{name}")).collect::<Vec<_>>().join(" OR ");
        let which = values
            .iter()
            .map(|name| format!("CASE WHEN h.{name} IS DISTINCT FROM r.{name} THEN ' {name}' ELSE '' END"))
            .collect::<Vec<_>>()
            .join(" || ");
        let (differs, which) = if values.is_empty() { ("1 = 0".to_owned(), "''".to_owned()) } else { (differs, which) };
        let (here, right) = (shown("h", names), shown("r", names));
        let first = names[0];
        let sql = format!(
            "SELECT {right}, CASE WHEN h.{first} IS NULL THEN 'missing' ELSE 'differs from the entries in' || {which} END
             FROM fresh_{table} AS r LEFT JOIN {table} AS h ON {join} WHERE h.{first} IS NULL OR {differs}
             UNION ALL
             SELECT {here}, 'no entry says so' FROM {table} AS h LEFT JOIN fresh_{table} AS r ON {join}
             WHERE r.{first} IS NULL
             LIMIT {MAX_FINDINGS}"
        );
        let rows = Query::new(sql).fetch_all(conn).await?;
        for row in rows {
            let (object, problem): (String, String) = (row.get(0)?, row.get(1)?);
            self.find(format!("{table} {object}"), problem);
        }
        Ok(())
    }
}

fn said(statement: &Statement) -> &str {
    statement.recorded_at().unwrap_or("nothing")
}

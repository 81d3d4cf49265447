//! What one statement adds to the views. The writer, a rebuild and the check use this one
//! function, so that what is written is what is rebuilt.

use adamant_attest::predicate::{self, Predicate};
use adamant_digest::Digest;
use adamant_store::LedgerError;

use crate::db::Conn;
use crate::sql::{self, Target};

/// Rows of all views, in the order of their entries.
#[derive(Debug, Default)]
pub(crate) struct Rows {
    bindings: Vec<BindingRow>,
    chains: Vec<(String, i64, i64, Digest)>,
    subjects: Vec<(Digest, i64)>,
    divergences: Vec<(&'static str, String, Digest, i64)>,
}

#[derive(Debug)]
struct BindingRow {
    kind: &'static str,
    name: String,
    digest: Digest,
    index: i64,
    by: String,
    recorded_at: i64,
    statement: Digest,
    sequence: Option<i64>,
}

/// An entry as the views see it.
pub(crate) struct Row<'a> {
    pub(crate) index: i64,
    pub(crate) statement: Digest,
    pub(crate) subject: &'a mut dyn Iterator<Item = Digest>,
    pub(crate) predicate: &'a Predicate,
    /// Unix seconds.
    pub(crate) recorded_at: i64,
    pub(crate) link: Option<(&'a str, i64)>,
}

impl Rows {
    pub(crate) fn add(&mut self, entry: Row<'_>) {
        let Row { index, statement, subject, predicate, recorded_at, link } = entry;
        let sequence = link.map(|(_, sequence)| sequence);
        for (kind, name, digest) in predicate::binds(predicate) {
            let (kind, by) = (kind.as_str(), predicate::actor(predicate).to_owned());
            self.bindings.push(BindingRow { kind, name, digest, index, by, recorded_at, statement, sequence });
        }
        if let Some((chain, sequence)) = link {
            self.chains.push((chain.to_owned(), sequence, index, statement));
        }
        self.subjects.extend(subject.map(|digest| (digest, index)));
        if let Predicate::Divergence(divergence) = predicate {
            let kind = divergence.kind.as_str();
            self.divergences.push((kind, divergence.name.clone(), divergence.offered, index));
        }
    }

    /// Inserts into the views or, for a comparison, into temporary ones beside them. Of several entries that say the
    /// same (an input that two locks name), the first is the one the view shows.
    pub(crate) async fn insert(self, conn: &mut Conn<'_>, place: Place) -> Result<(), LedgerError> {
        let target = |index: usize, columns: usize| Target {
            insert: match place {
                Place::Main => MAIN[index],
                Place::Temp => TEMP[index],
            },
            columns,
            conflict: "ON CONFLICT DO NOTHING",
        };
        let blob = |digest: Digest| digest.as_bytes().to_vec();
        sql::insert(conn, target(0, 8), self.bindings, |row, values| {
            values.add(row.kind).add(row.name).add(blob(row.digest)).add(row.index).add(row.by);
            values.add(row.recorded_at).add(blob(row.statement)).add(row.sequence);
        })
        .await?;
        sql::insert(conn, target(1, 4), self.chains, |(chain, sequence, index, statement), values| {
            values.add(chain).add(sequence).add(index).add(blob(statement));
        })
        .await?;
        sql::insert(conn, target(2, 2), self.subjects, |(digest, index), values| {
            values.add(blob(digest)).add(index);
        })
        .await?;
        sql::insert(conn, target(3, 4), self.divergences, |(kind, name, offered, index), values| {
            values.add(kind).add(name).add(blob(offered)).add(index);
        })
        .await
    }
}

/// Which copy of the views.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    Main,
    Temp,
}

const MAIN: [&str; 4] = [
    "INSERT INTO bindings (kind, name, digest, idx, by_whom, recorded_at, statement, sequence)",
    "INSERT INTO chains (chain, sequence, idx, statement)",
    "INSERT INTO subjects (digest, idx)",
    "INSERT INTO divergences (kind, name, offered, idx)",
];
const TEMP: [&str; 4] = [
    "INSERT INTO fresh_bindings (kind, name, digest, idx, by_whom, recorded_at, statement, sequence)",
    "INSERT INTO fresh_chains (chain, sequence, idx, statement)",
    "INSERT INTO fresh_subjects (digest, idx)",
    "INSERT INTO fresh_divergences (kind, name, offered, idx)",
];

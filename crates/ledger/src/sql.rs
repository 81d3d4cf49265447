//! Many rows in one statement: row by row SQLite takes a tenth as many.

use adamant_store::LedgerError;

use crate::db::{Conn, Query, Value};
use crate::error::damaged;

/// Most rows in one statement. Lower counts are powers of two, so that there are few texts and
/// the prepared statements are found again.
const MAX_ROWS: usize = 128;

/// The values of one row, added in the order of the columns.
pub(crate) struct Values<'a>(&'a mut Vec<Value>);

impl Values<'_> {
    pub(crate) fn add(&mut self, value: impl Into<Value>) -> &mut Self {
        self.0.push(value.into());
        self
    }
}

/// Where rows go.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Target {
    /// `INSERT INTO t (a, b)`, up to the values.
    pub(crate) insert: &'static str,
    /// Number of columns.
    pub(crate) columns: usize,
    /// What follows the values: an `ON CONFLICT` clause or nothing.
    pub(crate) conflict: &'static str,
}

/// Inserts `rows`, bound by `bind`.
pub(crate) async fn insert<T: Send>(
    conn: &mut Conn<'_>,
    target: Target,
    rows: Vec<T>,
    bind: impl Fn(T, &mut Values<'_>) + Send,
) -> Result<(), LedgerError> {
    let mut left = rows.len();
    let mut rows = rows.into_iter();
    while left > 0 {
        let count = if left >= MAX_ROWS { MAX_ROWS } else { 1 << left.ilog2() };
        left -= count;
        let mut values = Vec::with_capacity(count * target.columns);
        for row in rows.by_ref().take(count) {
            bind(row, &mut Values(&mut values));
        }
        Query::with(text(target, count), values).execute(&mut *conn).await?;
    }
    Ok(())
}

fn text(target: Target, rows: usize) -> String {
    use std::fmt::Write as _;
    let mut sql = String::with_capacity(target.insert.len() + 16 + rows * (target.columns * 6 + 2));
    sql.push_str(target.insert);
    sql.push_str(" VALUES ");
    for row in 0..rows {
        sql.push_str(if row == 0 { "(" } else { ",(" });
        for column in 0..target.columns {
            sql.push_str(if column == 0 { "$" } else { ",$" });
            // Writing to a string does not fail.
            let _ = write!(sql, "{}", row * target.columns + column + 1);
        }
        sql.push(')');
    }
    sql.push(' ');
    sql.push_str(target.conflict);
    sql
}

/// SQL integers are signed; an index or size beyond them is no number of ours.
pub(crate) fn signed(number: u64) -> Result<i64, LedgerError> {
    i64::try_from(number).map_err(|_| damaged(format!("{number} is too large for the database")))
}

/// The other way: a negative number was put there by somebody else.
pub(crate) fn unsigned(number: i64) -> Result<u64, LedgerError> {
    u64::try_from(number).map_err(|_| damaged(format!("{number} stands where a count belongs")))
}

/// A limit as SQL takes it.
pub(crate) fn limit(limit: usize) -> i64 {
    i64::try_from(limit).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writes_many_rows() {
        let target = Target { insert: "INSERT INTO t (a, b)", columns: 2, conflict: "" };
        assert_eq!(text(target, 1), "INSERT INTO t (a, b) VALUES ($1,$2) ");
        assert_eq!(text(target, 3), "INSERT INTO t (a, b) VALUES ($1,$2),($3,$4),($5,$6) ");
    }
}

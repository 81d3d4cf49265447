//! Numbers with their goals and peers, as a table or as JSON.

use std::io::Write as _;

use anyhow::Result;
use serde::Serialize;

/// Everything measured, in order.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Report {
    rows: Vec<Row>,
    /// What could not be measured, and why; and what a reader must know.
    notes: Vec<String>,
}

/// One number.
#[derive(Debug, Serialize)]
pub(crate) struct Row {
    what: String,
    value: f64,
    unit: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    goal: Option<Goal>,
    /// Whether the goal is reached.
    #[serde(skip_serializing_if = "Option::is_none")]
    ok: Option<bool>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    beside: Vec<Beside>,
    #[serde(skip_serializing_if = "String::is_empty")]
    note: String,
}

/// A bound in the row's unit.
#[derive(Debug, Clone, Copy, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) enum Goal {
    AtMost(f64),
    AtLeast(f64),
}

/// What a peer took for the same in the same run.
#[derive(Debug, Serialize)]
pub(crate) struct Beside {
    peer: String,
    value: f64,
    /// Ours divided by the peer's.
    ratio: f64,
}

impl Report {
    /// Adds a number.
    pub(crate) fn row(&mut self, what: impl Into<String>, value: f64, unit: &'static str) -> &mut Row {
        let row = Row { what: what.into(), value, unit, goal: None, ok: None, beside: Vec::new(), note: String::new() };
        say(&format!("  {}", row.line()));
        self.rows.push(row);
        let last = self.rows.len() - 1;
        &mut self.rows[last]
    }

    /// Adds a remark.
    pub(crate) fn note(&mut self, note: impl Into<String>) {
        self.notes.push(note.into());
    }

    pub(crate) fn print(&self, json: bool) -> Result<()> {
        let mut out = std::io::stdout().lock();
        if json {
            serde_json::to_writer_pretty(&mut out, self)?;
            return Ok(writeln!(out)?);
        }
        let width = self.rows.iter().map(|row| row.what.chars().count()).max().unwrap_or(0);
        writeln!(out, "\n{:<width$}  {:>16}  {:<14} {:<4} beside", "what", "measured", "goal", "ok")?;
        for row in &self.rows {
            let goal = match row.goal {
                Some(Goal::AtMost(most)) => format!("≤ {}", number(most, row.unit)),
                Some(Goal::AtLeast(least)) => format!("≥ {}", number(least, row.unit)),
                None => String::new(),
            };
            let ok = row.ok.map_or("", |ok| if ok { "ok" } else { "no" });
            let mut beside: Vec<String> = row
                .beside
                .iter()
                .map(|b| format!("{} {} (ours is {:.2}×)", b.peer, number(b.value, row.unit), b.ratio))
                .collect();
            if !row.note.is_empty() {
                beside.push(row.note.clone());
            }
            let line = format!(
                "{:<width$}  {:>16}  {goal:<14} {ok:<4} {}",
                row.what,
                number(row.value, row.unit),
                beside.join("; ")
            );
            writeln!(out, "{}", line.trim_end())?;
        }
        for note in &self.notes {
            writeln!(out, "\nnote: {note}")?;
        }
        Ok(())
    }
}

impl Row {
    /// Sets the goal.
    pub(crate) fn goal(&mut self, goal: Goal) -> &mut Self {
        self.ok = Some(match goal {
            Goal::AtMost(most) => self.value <= most,
            Goal::AtLeast(least) => self.value >= least,
        });
        self.goal = Some(goal);
        self
    }

    /// Sets a peer's number beside ours.
    pub(crate) fn beside(&mut self, peer: impl Into<String>, value: f64) -> &mut Self {
        self.beside.push(Beside { peer: peer.into(), value, ratio: self.value / value });
        self
    }

    /// Adds a remark to the line.
    pub(crate) fn note(&mut self, note: impl Into<String>) {
        self.note = note.into();
    }

    fn line(&self) -> String {
        format!("{}: {}", self.what, number(self.value, self.unit))
    }
}

fn number(value: f64, unit: &str) -> String {
    let digits = match value.abs() {
        0.0..1.0 => 2,
        1.0..100.0 => 1,
        _ => 0,
    };
    format!("{value:.digits$} {unit}")
}

/// A line about progress.
pub(crate) fn say(line: &str) {
    // Progress that nobody can read is not worth an error.
    let _ = writeln!(std::io::stderr(), "{line}");
}

/// The value in the middle; NaN of nothing.
pub(crate) fn median(values: &mut [f64]) -> f64 {
    quantile(values, 50)
}

/// The value that `percent` of all do not exceed; NaN of nothing.
pub(crate) fn quantile(values: &mut [f64], percent: usize) -> f64 {
    values.sort_by(f64::total_cmp);
    let at = (values.len() * percent / 100).min(values.len().saturating_sub(1));
    values.get(at).copied().unwrap_or(f64::NAN)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_and_goals() {
        let mut values: Vec<f64> = (0..100).rev().map(f64::from).collect();
        assert!((median(&mut values) - 50.0).abs() < 0.1 && (quantile(&mut values, 99) - 99.0).abs() < 0.1);
        assert!(median(&mut []).is_nan());
        let mut report = Report::default();
        assert_eq!(report.row("a", 3.0, "s").goal(Goal::AtMost(3.0)).ok, Some(true));
        assert_eq!(report.row("b", 3.0, "s").goal(Goal::AtLeast(3.1)).ok, Some(false));
        assert_eq!(number(12.34, "ms"), "12.3 ms");
    }
}

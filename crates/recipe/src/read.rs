//! TOML with places: every refusal names file, line and column.

use std::fmt;
use std::ops::{Range, RangeInclusive};

use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// A place in a text, both numbers from 1; columns count characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// Line.
    pub line: usize,
    /// Column.
    pub column: usize,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.line, self.column)
    }
}

/// Why a recipe or a lock was refused: where, what is wrong, and what to write instead.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{file}:{place}: {message}")]
pub struct RecipeError {
    /// File name.
    pub file: String,
    /// Where in it.
    pub place: Place,
    /// Cause and fix.
    pub message: String,
}

/// A text being read.
pub(crate) struct Document<'i> {
    file: &'static str,
    text: &'i str,
}

impl<'i> Document<'i> {
    pub(crate) fn new(file: &'static str, text: &'i str, max: usize) -> Result<Self, RecipeError> {
        let document = Self { file, text };
        if text.len() > max {
            return Err(document.error(0..0, format!("the file has {} bytes, more than {max}", text.len())));
        }
        Ok(document)
    }

    pub(crate) fn parse(&self) -> Result<Spanned<DeTable<'i>>, RecipeError> {
        DeTable::parse(self.text).map_err(|error| self.error(error.span().unwrap_or(0..0), error.message().to_owned()))
    }

    pub(crate) fn root<'d>(&'d self, table: &'d Spanned<DeTable<'i>>) -> Table<'d, 'i> {
        Table { document: self, members: table.get_ref(), span: 0..0 }
    }

    fn error(&self, span: Range<usize>, message: String) -> RecipeError {
        let before: String = self.text.bytes().take(span.start).map(char::from).collect();
        let line = before.matches('\n').count() + 1;
        let start = before.rfind('\n').map_or(0, |at| at + 1);
        let column = self.text.get(start..span.start.min(self.text.len())).map_or(0, |part| part.chars().count()) + 1;
        RecipeError { file: self.file.to_owned(), place: Place { line, column }, message }
    }
}

/// A table being read.
pub(crate) struct Table<'d, 'i> {
    document: &'d Document<'i>,
    members: &'d DeTable<'i>,
    span: Range<usize>,
}

/// A string of a list, with its place.
pub(crate) type Placed<'d> = (&'d str, Range<usize>);

impl<'d, 'i> Table<'d, 'i> {
    /// An error at the table's own place.
    pub(crate) fn error(&self, message: impl Into<String>) -> RecipeError {
        self.document.error(self.span.clone(), message.into())
    }

    pub(crate) fn error_span(&self, span: &Range<usize>, message: impl Into<String>) -> RecipeError {
        self.document.error(span.clone(), message.into())
    }

    /// An error at the value of `key`, or at the table if it has none.
    pub(crate) fn error_at(&self, key: &str, message: impl Into<String>) -> RecipeError {
        let span = self.members.get(key).map_or_else(|| self.span.clone(), Spanned::span);
        self.document.error(span, message.into())
    }

    pub(crate) fn check<T, E: fmt::Display>(&self, key: &str, result: Result<T, E>) -> Result<T, RecipeError> {
        result.map_err(|error| self.error_at(key, format!("`{key}`: {error}")))
    }

    pub(crate) fn check_span<T, E: fmt::Display>(
        &self,
        at: &Range<usize>,
        result: Result<T, E>,
    ) -> Result<T, RecipeError> {
        result.map_err(|error| self.error_span(at, error.to_string()))
    }

    pub(crate) fn required<T>(&self, value: Option<T>, key: &str, fix: &str) -> Result<T, RecipeError> {
        value.ok_or_else(|| self.error(format!("`{key}` is missing: {fix}")))
    }

    pub(crate) fn has(&self, key: &str) -> bool {
        self.members.get(key).is_some()
    }

    /// Refuses keys that are not in `known`.
    pub(crate) fn only(&self, known: &[&str]) -> Result<(), RecipeError> {
        for key in self.members.keys() {
            let name = key.get_ref().as_ref();
            if !known.contains(&name) {
                let fix = match nearest(name, known) {
                    Some(near) => format!("did you mean `{near}`?"),
                    None => format!("known here: {}", known.join(", ")),
                };
                return Err(self.error_span(&key.span(), format!("`{}` is not a key here; {fix}", shown(name))));
            }
        }
        Ok(())
    }

    fn wrong(&self, value: &Spanned<DeValue<'i>>, key: &str, expected: &str) -> RecipeError {
        self.error_span(&value.span(), format!("`{key}` is {}: write {expected}", kind(value.get_ref())))
    }

    pub(crate) fn string(&self, key: &str) -> Result<Option<&'d str>, RecipeError> {
        let Some(value) = self.members.get(key) else { return Ok(None) };
        value.get_ref().as_str().map(Some).ok_or_else(|| self.wrong(value, key, "a string in double quotes"))
    }

    pub(crate) fn boolean(&self, key: &str) -> Result<Option<bool>, RecipeError> {
        let Some(value) = self.members.get(key) else { return Ok(None) };
        value.get_ref().as_bool().map(Some).ok_or_else(|| self.wrong(value, key, "true or false"))
    }

    pub(crate) fn integer(&self, key: &str, range: RangeInclusive<i64>) -> Result<Option<i64>, RecipeError> {
        let Some(value) = self.members.get(key) else { return Ok(None) };
        let expected = format!("a whole number from {} to {}", range.start(), range.end());
        let number = value.get_ref().as_integer().ok_or_else(|| self.wrong(value, key, &expected))?;
        match i64::from_str_radix(number.as_str(), number.radix()) {
            Ok(number) if range.contains(&number) => Ok(Some(number)),
            _ => {
                Err(self.error_span(&value.span(), format!("`{key}` is {}: write {expected}", shown(number.as_str()))))
            }
        }
    }

    pub(crate) fn strings(&self, key: &str, max: usize) -> Result<Option<Vec<Placed<'d>>>, RecipeError> {
        let Some(value) = self.members.get(key) else { return Ok(None) };
        let expected = "a list of strings, `[\"one\", \"two\"]`";
        let list = value.get_ref().as_array().ok_or_else(|| self.wrong(value, key, expected))?;
        if list.len() > max {
            return Err(self.error_span(&value.span(), format!("`{key}` has {} members, more than {max}", list.len())));
        }
        let string = |item: &'d Spanned<DeValue<'i>>| {
            let text = item.get_ref().as_str().ok_or_else(|| self.wrong(item, key, expected))?;
            Ok((text, item.span()))
        };
        list.iter().map(string).collect::<Result<_, _>>().map(Some)
    }

    /// `{ name = "value" }`, with the places of name and value.
    pub(crate) fn string_map(&self, key: &str, max: usize) -> Result<Vec<(Placed<'d>, Placed<'d>)>, RecipeError> {
        let Some(table) = self.table(key)? else { return Ok(Vec::new()) };
        if table.members.len() > max {
            return Err(self.error_at(key, format!("`{key}` has {} members, more than {max}", table.members.len())));
        }
        let pair = |(name, value): (&'d Spanned<std::borrow::Cow<'i, str>>, &'d Spanned<DeValue<'i>>)| {
            let text = value.get_ref().as_str().ok_or_else(|| self.wrong(value, key, "`{ \"name\" = \"value\" }`"))?;
            Ok(((name.get_ref().as_ref(), name.span()), (text, value.span())))
        };
        table.members.iter().map(pair).collect()
    }

    pub(crate) fn table(&self, key: &str) -> Result<Option<Table<'d, 'i>>, RecipeError> {
        let Some(value) = self.members.get(key) else { return Ok(None) };
        let table = value.get_ref().as_table().ok_or_else(|| self.wrong(value, key, &format!("a table, `[{key}]`")))?;
        Ok(Some(Table { document: self.document, members: table, span: value.span() }))
    }

    /// All members as tables, in order of their names; keys in `self` are at most `max`.
    pub(crate) fn tables(&self, max: usize) -> Result<Vec<(&'d str, Table<'d, 'i>)>, RecipeError> {
        if self.members.len() > max {
            return Err(self.error(format!("{} tables, more than {max}", self.members.len())));
        }
        let mut tables = Vec::new();
        for (key, value) in self.members {
            let name = key.get_ref().as_ref();
            let table = value.get_ref().as_table().ok_or_else(|| self.wrong(value, name, "a table"))?;
            tables.push((name, Table { document: self.document, members: table, span: key.span() }));
        }
        tables.sort_by_key(|(name, _)| *name);
        Ok(tables)
    }

    /// Names of members that are tables, and of those that are not, each with its place.
    pub(crate) fn members(&self) -> Vec<(&'d str, Range<usize>, bool)> {
        let member = |(key, value): (&'d Spanned<std::borrow::Cow<'i, str>>, &'d Spanned<DeValue<'i>>)| {
            (key.get_ref().as_ref(), key.span(), value.get_ref().is_table())
        };
        let mut members: Vec<_> = self.members.iter().map(member).collect();
        members.sort_by_key(|(name, ..)| *name);
        members
    }

    /// `[[key]]`.
    pub(crate) fn tables_of(&self, key: &str, max: usize) -> Result<Vec<Table<'d, 'i>>, RecipeError> {
        let Some(value) = self.members.get(key) else { return Ok(Vec::new()) };
        let expected = format!("a list of tables, `[[{key}]]`");
        let list = value.get_ref().as_array().ok_or_else(|| self.wrong(value, key, &expected))?;
        if list.len() > max {
            return Err(self.error_at(key, format!("`{key}` has {} members, more than {max}", list.len())));
        }
        let table = |item: &'d Spanned<DeValue<'i>>| {
            let table = item.get_ref().as_table().ok_or_else(|| self.wrong(item, key, &expected))?;
            Ok(Table { document: self.document, members: table, span: item.span() })
        };
        list.iter().map(table).collect()
    }
}

fn kind(value: &DeValue<'_>) -> &'static str {
    match value {
        DeValue::String(_) => "a string",
        DeValue::Integer(_) | DeValue::Float(_) => "a number",
        DeValue::Boolean(_) => "true or false",
        DeValue::Datetime(_) => "a date",
        DeValue::Array(_) => "a list",
        DeValue::Table(_) => "a table",
    }
}

/// A foreign text as it may stand in a message.
pub(crate) fn shown(text: &str) -> String {
    text.chars().take(60).flat_map(char::escape_debug).collect()
}

/// The member of `known` at most two edits away from `text`.
pub(crate) fn nearest<'a>(text: &str, known: &[&'a str]) -> Option<&'a str> {
    let text: Vec<char> = text.chars().take(40).collect();
    known
        .iter()
        .map(|word| (edits(&text, &word.chars().collect::<Vec<_>>()), *word))
        .filter(|(distance, word)| *distance <= 2 && *distance < word.len())
        .min()
        .map(|(_, word)| word)
}

/// Levenshtein distance.
fn edits(a: &[char], b: &[char]) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.iter().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

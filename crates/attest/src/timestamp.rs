//! The one spelling of time in a statement: `YYYY-MM-DDTHH:MM:SSZ` (RFC 3339, UTC, whole seconds).

use time::OffsetDateTime;
use time::format_description::BorrowedFormatItem;
use time::macros::format_description;

const FORMAT: &[BorrowedFormatItem<'static>] = format_description!("[year]-[month]-[day]T[hour]:[minute]:[second]Z");

/// Seconds since the Unix epoch as text; `None` outside the years 0 to 9999.
pub fn format_time(unix_seconds: i64) -> Option<String> {
    let moment = OffsetDateTime::from_unix_timestamp(unix_seconds).ok()?;
    if !(0..=9999).contains(&moment.year()) {
        return None;
    }
    moment.format(FORMAT).ok()
}

/// Text as seconds since the Unix epoch; `None` unless it is exactly what [`format_time`] writes.
pub fn parse_time(text: &str) -> Option<i64> {
    if text.len() != 20 {
        return None;
    }
    let moment = time::PrimitiveDateTime::parse(text, FORMAT).ok()?.assume_utc().unix_timestamp();
    (format_time(moment)? == text).then_some(moment)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_spelling() {
        assert_eq!(format_time(0).as_deref(), Some("1970-01-01T00:00:00Z"));
        assert_eq!(parse_time("2024-02-29T23:59:59Z"), Some(1_709_251_199));
        for bad in [
            "",
            "2024-02-30T00:00:00Z",
            "2024-02-29T23:59:60Z",
            "2024-02-29 23:59:59Z",
            "2024-02-29T23:59:59z",
            "2024-02-29T23:59:59+00:00",
            "2024-02-29T23:59:59.0Z",
            "+024-02-29T23:59:59Z",
            "2023-02-29T00:00:00Z",
        ] {
            assert_eq!(parse_time(bad), None, "{bad}");
        }
        assert_eq!(format_time(i64::MAX), None);
    }
}

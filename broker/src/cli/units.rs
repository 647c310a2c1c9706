//! Durations, sizes and times as people write them; durations and sizes also back.
//!
//! What is written out can be read again: `7d`, `64MiB`. Nothing is rounded: an amount is shown in the largest unit
//! that holds it exactly.

use std::time::UNIX_EPOCH;

const DURATION_UNITS_MS: [(u64, &str); 5] =
    [(86_400_000, "d"), (3_600_000, "h"), (60_000, "m"), (1_000, "s"), (1, "ms")];
const SIZE_UNITS: [(u64, &str); 5] =
    [(1 << 40, "TiB"), (1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB"), (1, "B")];

/// Reads `7d`, `12h`, `1h 30m`, `90s`, `250ms` into milliseconds, at least 1.
pub(super) fn parse_duration_ms(text: &str) -> Result<u64, String> {
    let duration = humantime::parse_duration(text)
        .map_err(|error| format!("{error}; a duration is such as 7d, 12h, 30m or 90s"))?;
    match u64::try_from(duration.as_millis()) {
        Ok(0) => Err("shorter than a millisecond".to_owned()),
        Ok(duration_ms) => Ok(duration_ms),
        Err(_) => Err("longer than can be counted in milliseconds".to_owned()),
    }
}

/// Reads `123`, `64KiB`, `1 GiB` into bytes, at least 1.
pub(super) fn parse_size(text: &str) -> Result<u64, String> {
    let text = text.trim();
    let digits = text.find(|letter: char| !letter.is_ascii_digit()).unwrap_or(text.len());
    let unit = match text[digits..].trim() {
        "" => "B".to_owned(),
        // `64M` is 64 MiB, as in the config file.
        letter @ ("K" | "M" | "G" | "T") => format!("{letter}iB"),
        unit => unit.to_owned(),
    };
    let factor = SIZE_UNITS.into_iter().find_map(|(factor, name)| (name == unit).then_some(factor));
    let number = text[..digits].parse::<u64>().ok();
    let bytes = number.zip(factor).and_then(|(number, factor)| number.checked_mul(factor));
    bytes.filter(|bytes| *bytes > 0).ok_or_else(|| "not a size such as 67108864, 64MiB or 1GiB".to_owned())
}

/// Reads `2026-11-22T10:00:00Z`, with or without a fraction of a second, into milliseconds since 1970.
pub(super) fn parse_time_ms(text: &str) -> Result<u64, String> {
    let time = humantime::parse_rfc3339(text).map_err(|error| error.to_string())?;
    let since = time.duration_since(UNIX_EPOCH).map_err(|_| "before 1970".to_owned())?;
    u64::try_from(since.as_millis()).map_err(|_| "too late".to_owned())
}

/// `7d`; `-` for 0.
pub(super) fn format_duration_ms(duration_ms: u64) -> String {
    format_exactly(duration_ms, &DURATION_UNITS_MS)
}

/// `64MiB`; `-` for 0.
pub(super) fn format_size(bytes: u64) -> String {
    format_exactly(bytes, &SIZE_UNITS)
}

fn format_exactly(amount: u64, units: &[(u64, &str)]) -> String {
    let found = units.iter().find(|(unit, _)| amount >= *unit && amount.is_multiple_of(*unit));
    found.map_or_else(|| "-".to_owned(), |(unit, name)| format!("{}{name}", amount / unit))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_and_written() {
        for (text, duration_ms, written) in [
            ("7d", 604_800_000, "7d"),
            ("12h", 43_200_000, "12h"),
            ("30m", 1_800_000, "30m"),
            ("90s", 90_000, "90s"),
            ("1h 30m", 5_400_000, "90m"),
            ("1500ms", 1_500, "1500ms"),
            ("48h", 172_800_000, "2d"),
        ] {
            assert_eq!(parse_duration_ms(text), Ok(duration_ms), "{text}");
            assert_eq!(format_duration_ms(duration_ms), written);
            assert_eq!(parse_duration_ms(written), Ok(duration_ms));
        }
        for text in ["", "7", "d", "-1s", "0s", "10us", "7 dogs", "999999999999999y"] {
            assert!(parse_duration_ms(text).is_err(), "{text}");
        }
        assert_eq!(format_duration_ms(0), "-");
    }

    #[test]
    fn sizes_are_read_and_written() {
        for (text, bytes, written) in [
            ("123", 123, "123B"),
            ("64KiB", 64 << 10, "64KiB"),
            ("64 M", 64 << 20, "64MiB"),
            ("1024MiB", 1 << 30, "1GiB"),
            ("3TiB", 3 << 40, "3TiB"),
            ("1536B", 1536, "1536B"),
        ] {
            assert_eq!(parse_size(text), Ok(bytes), "{text}");
            assert_eq!(format_size(bytes), written);
            assert_eq!(parse_size(written), Ok(bytes));
        }
        for text in ["", "0", "0MiB", "MiB", "-1", "1.5GiB", "1KB", "1 GiB more", "99999999999TiB"] {
            assert!(parse_size(text).is_err(), "{text}");
        }
        assert_eq!(format_size(0), "-");
    }

    #[test]
    fn times_are_read_in_utc_only() {
        for (text, time_ms) in [
            ("1970-01-01T00:00:00Z", 0),
            ("2026-11-22T10:00:00Z", 1_795_341_600_000),
            ("2024-02-29T23:59:59.250Z", 1_709_251_199_250),
        ] {
            assert_eq!(parse_time_ms(text), Ok(time_ms), "{text}");
        }
        for text in ["2026-11-22", "2026-11-22T10:00:00", "2026-02-30T10:00:00Z", "2026-11-22T10:00:00+01:00"]
        {
            assert!(parse_time_ms(text).is_err(), "{text}");
        }
    }
}

//! Numbers for people.

/// `12.3`, `1,234`: three or more digits that mean something.
pub fn number(value: f64) -> String {
    if value != value.trunc() && value.abs() < 9.995 {
        return format!("{value:.2}");
    }
    if value != value.trunc() && value.abs() < 99.95 {
        return format!("{value:.1}");
    }
    grouped(value.round())
}

/// `1,234,567`.
pub fn count(value: u64) -> String {
    grouped(value as f64)
}

/// `1 row`, `2 rows`, `2 dispatches`: so many of what `one` of them is called.
pub fn counted(value: u64, one: &str) -> String {
    let ending = match value {
        1 => "",
        _ if one.ends_with("ch") => "es",
        _ => "s",
    };
    format!("{} {one}{ending}", count(value))
}

fn grouped(value: f64) -> String {
    let digits = format!("{:.0}", value.abs());
    let mut text = String::from(if value < 0.0 { "−" } else { "" });
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// `12.3 MB`; units of 1000, as files and downloads have them.
pub fn bytes(value: f64) -> String {
    let units = ["B", "kB", "MB", "GB", "TB"];
    let mut value = value;
    let mut unit = 0;
    // What would be written as 1000 is one of the next unit.
    while value >= 999.5 && unit + 1 < units.len() {
        value /= 1000.0;
        unit += 1;
    }
    let digits = if unit == 0 || value >= 99.95 { 0 } else { 1 };
    format!("{value:.digits$} {}", units[unit])
}

/// `1.23 s`, `45.6 ms`, `789 µs`.
pub fn seconds(value: f64) -> String {
    let (value, unit) = match value {
        0.0 => return "0 s".to_owned(),
        value if value >= 0.9995 => (value, "s"),
        value if value >= 0.000_999_5 => (value * 1e3, "ms"),
        value => (value * 1e6, "µs"),
    };
    let digits =
        if value >= 99.95 || unit == "µs" && value >= 9.995 { 0 } else { 1 + usize::from(value < 9.995) };
    format!("{value:.digits$} {unit}")
}

/// `45 %`, `4.5 %`.
pub fn percent(part: f64) -> String {
    let value = part * 100.0;
    if value == 0.0 || value >= 9.95 { format!("{value:.0} %") } else { format!("{value:.1} %") }
}

/// `40 s`, `3 min 20 s`, `2 h 5 min`.
pub fn duration(seconds: f64) -> String {
    let seconds = seconds.max(0.0).round() as u64;
    match seconds {
        0..60 => format!("{seconds} s"),
        60..3600 => format!("{} min {} s", seconds / 60, seconds % 60),
        _ => format!("{} h {} min", seconds / 3600, seconds % 3600 / 60),
    }
}

/// What stands where a number is not known.
pub const UNKNOWN: &str = "–";

/// A number, or what stands in its place.
pub fn or_unknown(value: Option<f64>, format: impl Fn(f64) -> String) -> String {
    value.map_or_else(|| UNKNOWN.to_owned(), format)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_short() {
        for (value, text) in [
            (0.0, "0"),
            (7.0, "7"),
            (1.234, "1.23"),
            (12.34, "12.3"),
            (123.4, "123"),
            (999.6, "1,000"),
            (1_234_567.0, "1,234,567"),
            (-1234.0, "−1,234"),
        ] {
            assert_eq!(number(value), text);
        }
        assert_eq!(count(1_000), "1,000");
    }

    #[test]
    fn one_is_not_many() {
        assert_eq!(counted(1, "row"), "1 row");
        assert_eq!(counted(1234, "row"), "1,234 rows");
        assert_eq!(counted(0, "dispatch"), "0 dispatches");
    }

    #[test]
    fn units_fit_their_values() {
        for (value, text) in [
            (0.0, "0 B"),
            (999.0, "999 B"),
            (1_000.0, "1.0 kB"),
            (99_960.0, "100 kB"),
            (999_900.0, "1.0 MB"),
            (2.5e9, "2.5 GB"),
        ] {
            assert_eq!(bytes(value), text);
        }
        for (value, text) in [
            (0.0, "0 s"),
            (1.5, "1.50 s"),
            (12.5, "12.5 s"),
            (0.25, "250 ms"),
            (0.0123, "12.3 ms"),
            (0.000_25, "250 µs"),
            (0.000_002_5, "2.50 µs"),
        ] {
            assert_eq!(seconds(value), text);
        }
        for (value, text) in [(0.0, "0 %"), (0.045, "4.5 %"), (0.5, "50 %"), (1.0, "100 %")] {
            assert_eq!(percent(value), text);
        }
        for (value, text) in [(12.4, "12 s"), (200.0, "3 min 20 s"), (7_500.0, "2 h 5 min")] {
            assert_eq!(duration(value), text);
        }
        assert_eq!(or_unknown(None, bytes), UNKNOWN);
    }
}

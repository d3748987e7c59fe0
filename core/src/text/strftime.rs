//! `strftime_now(format)`, with which templates write today's date. The clock is UTC: a browser and a server
//! then agree, and no time zone database is needed.

use web_time::{SystemTime, UNIX_EPOCH};

pub(super) fn now(format: &str) -> String {
    let seconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
    strftime(seconds, format)
}

const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];
const DAYS: [&str; 7] = ["Thursday", "Friday", "Saturday", "Sunday", "Monday", "Tuesday", "Wednesday"];

/// Formats Unix time `seconds`; a directive it does not know stays as written.
fn strftime(seconds: u64, format: &str) -> String {
    let (days, second) = (seconds / 86400, seconds % 86400);
    let (year, month, day) = civil(days);
    let (month_name, day_name) = (MONTHS[month as usize - 1], DAYS[(days % 7) as usize]);
    let (hour, minute) = (second / 3600, second / 60 % 60);
    let mut out = String::new();
    let mut rest = format;
    while let Some(at) = rest.find('%') {
        out.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        // `%-d`: without padding.
        let (padded, tail) = match rest.strip_prefix('-') {
            Some(tail) => (false, tail),
            None => (true, rest),
        };
        let number = |n: u64| if padded { format!("{n:02}") } else { n.to_string() };
        let Some(directive) = tail.chars().next() else {
            out.push('%');
            break;
        };
        let text = match directive {
            'Y' => year.to_string(),
            'y' => number(year % 100),
            'm' => number(month),
            'd' => number(day),
            'H' => number(hour),
            'I' => number((hour + 11) % 12 + 1),
            'M' => number(minute),
            'S' => number(second % 60),
            'p' => if hour < 12 { "AM" } else { "PM" }.to_owned(),
            'B' => month_name.to_owned(),
            'b' => month_name[..3].to_owned(),
            'A' => day_name.to_owned(),
            'a' => day_name[..3].to_owned(),
            'F' => format!("{year}-{month:02}-{day:02}"),
            'T' => format!("{hour:02}:{minute:02}:{:02}", second % 60),
            'Z' => "UTC".to_owned(),
            '%' => "%".to_owned(),
            _ => {
                out.push('%');
                continue;
            }
        };
        out.push_str(&text);
        rest = &tail[directive.len_utf8()..];
    }
    out + rest
}

/// Year, month and day of the Gregorian calendar, `days` after 1970-01-01 (H. Hinnant, "chrono-compatible
/// low-level date algorithms", civil_from_days).
fn civil(days: u64) -> (u64, u64, u64) {
    let z = days + 719_468;
    let (era, doe) = (z / 146_097, z % 146_097);
    let yoe = (doe - doe / 1460 + doe / 36524 - doe / 146_096) / 365;
    let doy = doe - (365 * yoe + yoe / 4 - yoe / 100);
    let mp = (5 * doy + 2) / 153;
    let month = if mp < 10 { mp + 3 } else { mp - 9 };
    (yoe + era * 400 + u64::from(month <= 2), month, doy - (153 * mp + 2) / 5 + 1)
}

#[cfg(test)]
mod tests {
    use super::strftime;

    /// Expected values from `date -u -d @N +FORMAT`.
    #[test]
    fn formats_dates() {
        assert_eq!(strftime(0, "%Y-%m-%d %A %H:%M:%S"), "1970-01-01 Thursday 00:00:00");
        assert_eq!(strftime(951_782_400, "%d %b %Y, %a"), "29 Feb 2000, Tue");
        assert_eq!(strftime(1_754_006_399, "%B %-d, %y %I:%M %p 100%% %Q"), "July 31, 25 11:59 PM 100% %Q");
        assert_eq!(strftime(4_107_542_399, "%F %T%"), "2100-02-28 23:59:59%");
        assert_eq!(strftime(4_107_542_400, "%F"), "2100-03-01");
    }
}

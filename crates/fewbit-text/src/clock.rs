use std::fmt::Write;
use std::time::{SystemTime, UNIX_EPOCH};

const WEEKDAYS: [&str; 7] = ["Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"];
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

/// Seconds since 1970-01-01 00:00 UTC.
pub(crate) fn now() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs() as i64)
}

/// Formats a moment as C's `strftime` does in the C locale, in UTC.
///
/// Chat templates ask for a date; the machine's time zone is not known here. A directive that is not known stays as
/// it is written.
pub(crate) fn strftime(seconds: i64, format: &str) -> String {
    let day = seconds.div_euclid(86_400);
    let second = seconds.rem_euclid(86_400);
    let (year, month, date) = civil(day);
    let weekday = (day + 4).rem_euclid(7);
    let of_year = day - days_before(year) + 1;
    let (h, m, s) = (second / 3600, second / 60 % 60, second % 60);
    let (month_name, day_name) = (MONTHS[month as usize - 1], WEEKDAYS[weekday as usize]);
    let half = if h < 12 { "AM" } else { "PM" };
    let h12 = (h + 11) % 12 + 1;
    let mut out = String::new();
    let mut chars = format.chars();
    while let Some(c) = chars.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        let mut directive = chars.next();
        let unpadded = directive == Some('-');
        if unpadded {
            directive = chars.next();
        }
        let number = |out: &mut String, n: i64, width: usize| {
            let width = if unpadded { 0 } else { width };
            let _ = write!(out, "{n:0width$}");
        };
        match directive {
            Some('Y') => number(&mut out, year, 4),
            Some('y') => number(&mut out, year.rem_euclid(100), 2),
            Some('m') => number(&mut out, month, 2),
            Some('d') => number(&mut out, date, 2),
            Some('e') => {
                let _ = write!(out, "{date:2}");
            }
            Some('j') => number(&mut out, of_year, 3),
            Some('H') => number(&mut out, h, 2),
            Some('I') => number(&mut out, h12, 2),
            Some('M') => number(&mut out, m, 2),
            Some('S') => number(&mut out, s, 2),
            Some('f') => out.push_str("000000"),
            Some('w') => number(&mut out, weekday, 1),
            Some('u') => number(&mut out, (weekday + 6) % 7 + 1, 1),
            Some('B') => out.push_str(month_name),
            Some('b' | 'h') => out.push_str(&month_name[..3]),
            Some('A') => out.push_str(day_name),
            Some('a') => out.push_str(&day_name[..3]),
            Some('p') => out.push_str(half),
            Some('Z') => out.push_str("UTC"),
            Some('z') => out.push_str("+0000"),
            Some('s') => number(&mut out, seconds, 1),
            Some('n') => out.push('\n'),
            Some('t') => out.push('\t'),
            Some('%') => out.push('%'),
            Some('F') => out.push_str(&strftime(seconds, "%Y-%m-%d")),
            Some('T' | 'X') => out.push_str(&strftime(seconds, "%H:%M:%S")),
            Some('R') => out.push_str(&strftime(seconds, "%H:%M")),
            Some('D' | 'x') => out.push_str(&strftime(seconds, "%m/%d/%y")),
            Some('c') => out.push_str(&strftime(seconds, "%a %b %e %H:%M:%S %Y")),
            other => {
                out.push_str(if unpadded { "%-" } else { "%" });
                out.extend(other);
            }
        }
    }
    out
}

/// Days from 1970-01-01 to the first day of `year`.
fn days_before(year: i64) -> i64 {
    let y = year - 1;
    365 * (year - 1970) + y.div_euclid(4) - y.div_euclid(100) + y.div_euclid(400) - 477
}

/// Year, month and day of the month of a day counted from 1970-01-01 (proleptic Gregorian).
fn civil(day: i64) -> (i64, i64, i64) {
    let mut year = 1970 + day.div_euclid(366);
    while days_before(year + 1) <= day {
        year += 1;
    }
    let leap = days_before(year + 1) - days_before(year) == 366;
    let mut left = day - days_before(year);
    let lengths = [31, if leap { 29 } else { 28 }, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
    let mut month = 1;
    for length in lengths {
        if left < length {
            break;
        }
        left -= length;
        month += 1;
    }
    (year, month, left + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_days() {
        assert_eq!(strftime(0, "%A %d %B %Y %j %H:%M:%S"), "Thursday 01 January 1970 001 00:00:00");
        assert_eq!(strftime(951_782_400, "%a %-d %b %y"), "Tue 29 Feb 00");
        assert_eq!(strftime(1_795_630_509, "%F %T, %I %p"), "2026-11-25 18:15:09, 06 PM");
        assert_eq!(strftime(1_795_630_509, "%d %b %Y %% %Q %-Q %"), "25 Nov 2026 % %Q %-Q %");
        assert_eq!(strftime(-86_400, "%F %j"), "1969-12-31 365");
        assert_eq!(strftime(4_102_444_799, "%c"), "Thu Dec 31 23:59:59 2099");
    }
}

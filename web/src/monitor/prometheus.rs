//! Prometheus' text format, as far as Tread's own metrics use it.

/// What one answer of `metrics` holds.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Scrape {
    series: Vec<Series>,
}

#[derive(Clone, Debug, PartialEq)]
struct Series {
    name: String,
    labels: Vec<(String, String)>,
    value: f64,
}

impl Scrape {
    /// Reads the text. A line that is not understood is left out: a server may be newer than the page.
    pub fn parse(text: &str) -> Self {
        let lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
        Self { series: lines.filter_map(series).collect() }
    }

    /// The sum over all labels; none where the name does not occur.
    pub fn sum(&self, name: &str) -> Option<f64> {
        self.series.iter().filter(|s| s.name == name).map(|s| s.value).reduce(|a, b| a + b)
    }

    /// The value with one label.
    pub fn labelled(&self, name: &str, label: &str, value: &str) -> Option<f64> {
        let here = |s: &&Series| s.name == name && s.label(label) == Some(value);
        self.series.iter().find(here).map(|s| s.value)
    }

    /// The buckets of a histogram without labels; none where it counted nothing yet.
    pub fn histogram(&self, name: &str) -> Option<Histogram> {
        let name = format!("{name}_bucket");
        let mut buckets: Vec<(f64, f64)> = self
            .series
            .iter()
            .filter(|s| s.name == name)
            .filter_map(|s| Some((number(s.label("le")?)?, s.value)))
            .collect();
        buckets.sort_by(|a, b| a.0.total_cmp(&b.0));
        (buckets.last()?.1 > 0.0).then_some(Histogram { buckets })
    }
}

impl Series {
    fn label(&self, name: &str) -> Option<&str> {
        self.labels.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }
}

/// Counts of values up to bounds, as Prometheus keeps them.
#[derive(Clone, Debug, PartialEq)]
pub struct Histogram {
    /// Upper bound, and how many values are no larger; sorted, the last bound infinite.
    buckets: Vec<(f64, f64)>,
}

impl Histogram {
    /// The value that a part `q` of all values does not exceed, as Prometheus' `histogram_quantile` estimates it: in a
    /// bucket, values are taken to lie evenly; beyond the last finite bound, that bound is all that can be said.
    pub fn quantile(&self, q: f64) -> Option<f64> {
        let total = self.buckets.last()?.1;
        let rank = q.clamp(0.0, 1.0) * total;
        let at = self.buckets.iter().position(|(_, count)| *count >= rank && *count > 0.0)?;
        let (below, counted) = if at == 0 { (0.0, 0.0) } else { self.buckets[at - 1] };
        let (bound, count) = self.buckets[at];
        if bound.is_infinite() {
            return (at > 0).then_some(below);
        }
        let inside = count - counted;
        let part = if inside > 0.0 { (rank - counted) / inside } else { 1.0 };
        Some(below + (bound - below) * part.clamp(0.0, 1.0))
    }
}

/// `name{label="value",...} number [timestamp]`.
fn series(line: &str) -> Option<Series> {
    let end = line.find(|c: char| c == '{' || c.is_whitespace())?;
    let (name, rest) = line.split_at(end);
    let (labels, rest) = match rest.strip_prefix('{') {
        Some(rest) => labels(rest)?,
        None => (Vec::new(), rest),
    };
    let value = number(rest.split_whitespace().next()?)?;
    Some(Series { name: name.to_owned(), labels, value })
}

/// Labels up to the closing brace, and what follows it.
fn labels(mut rest: &str) -> Option<(Vec<(String, String)>, &str)> {
    let mut labels = Vec::new();
    loop {
        rest = rest.trim_start_matches(|c: char| c == ',' || c.is_whitespace());
        if let Some(rest) = rest.strip_prefix('}') {
            return Some((labels, rest));
        }
        let (key, after) = rest.split_once('=')?;
        let (value, after) = quoted(after.trim_start().strip_prefix('"')?)?;
        labels.push((key.trim().to_owned(), value));
        rest = after;
    }
}

/// Text up to the closing quote, unescaped, and what follows it.
fn quoted(text: &str) -> Option<(String, &str)> {
    let mut value = String::new();
    let mut chars = text.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return Some((value, &text[at + 1..])),
            '\\' => match chars.next()?.1 {
                'n' => value.push('\n'),
                other => value.push(other),
            },
            other => value.push(other),
        }
    }
    None
}

/// Rust reads `inf` and `NaN`; Prometheus writes `+Inf`, `-Inf` and `NaN`.
fn number(text: &str) -> Option<f64> {
    text.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::Scrape;

    const TEXT: &str = r#"
# HELP vllm:num_requests_running Sequences.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running 3

vllm:request_success_total{finished_reason="stop"} 4
vllm:request_success_total{finished_reason="length"} 2
odd{a="x,}\"y\\",b="2\n3"} 1.5 1700000000000
this is no metric
unclosed{a="b 3
lat_bucket{le="0.1"} 2
lat_bucket{le="0.5"} 6
lat_bucket{le="+Inf"} 8
lat_sum 3.5
lat_count 8
empty_bucket{le="+Inf"} 0
"#;

    #[test]
    fn values_and_labels_are_read() {
        let scrape = Scrape::parse(TEXT);
        assert_eq!(scrape.sum("vllm:num_requests_running"), Some(3.0));
        assert_eq!(scrape.sum("vllm:request_success_total"), Some(6.0));
        assert_eq!(scrape.labelled("vllm:request_success_total", "finished_reason", "length"), Some(2.0));
        assert_eq!(scrape.labelled("vllm:request_success_total", "finished_reason", "abort"), None);
        assert_eq!(scrape.labelled("odd", "a", "x,}\"y\\"), Some(1.5));
        assert_eq!(scrape.labelled("odd", "b", "2\n3"), Some(1.5));
        assert_eq!(scrape.sum("unclosed"), None);
        assert_eq!(scrape.sum("nothing"), None);
    }

    #[test]
    fn quantiles_are_those_of_prometheus() {
        let histogram = Scrape::parse(TEXT).histogram("lat").expect("it counted");
        // The fourth of eight values is the second of four between 0.1 and 0.5.
        assert!((histogram.quantile(0.5).unwrap() - 0.3).abs() < 1e-12);
        assert!((histogram.quantile(0.25).unwrap() - 0.1).abs() < 1e-12);
        assert!((histogram.quantile(0.125).unwrap() - 0.05).abs() < 1e-12);
        assert_eq!(histogram.quantile(0.95), Some(0.5));
        assert_eq!(Scrape::parse(TEXT).histogram("empty"), None);
        assert_eq!(Scrape::parse(TEXT).histogram("nothing"), None);
    }

    #[test]
    fn a_histogram_of_one_endless_bucket_says_nothing() {
        let scrape = Scrape::parse("a_bucket{le=\"+Inf\"} 3");
        assert_eq!(scrape.histogram("a").unwrap().quantile(0.5), None);
    }
}

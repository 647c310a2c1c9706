//! The words in which people say how records arrive, as in `spike:base=20k,x10,for=10s,at=30s`.
//!
//! ```text
//! const:50k                        poisson:50k                     max
//! ramp:1k->100k/30s                step:10k*10/5s  (10k, 20k, ... 100k, 5 s each)
//! sine:50k+-40k/20s                square:on=200k/1ms,off=0/99ms
//! spike:base=20k,x10,for=10s,at=30s
//! trace:file.csv
//! ```
//!
//! Rates are records per second over all connections. Shapes are joined with `;`, all but the last with a length:
//! `const:1k/5s;ramp:1k->9k/10s`. A shape that is shorter than its phase keeps its last rate.

use std::path::PathBuf;

use super::{Arrivals, PIECES_MAX, Segment, Spread, Trace, TraceError};

const NS_PER_S: f64 = 1e9;
/// Straight pieces that stand for one period of a sine: off by less than a thousandth of the amplitude.
const SINE_PIECES: u32 = 96;
/// Highest rate.
const RATE_MAX: f64 = 1e9;
/// Longest duration, in seconds: a week.
const SECONDS_MAX: f64 = 604_800.0;

/// What is wrong with such words.
#[derive(Debug, thiserror::Error)]
pub(crate) enum GrammarError {
    /// Not a rate.
    #[error("`{0}` is no rate: take records per second, as in 500, 20k or 1.5M, up to 1000M")]
    Rate(String),
    /// Not a duration.
    #[error("`{0}` is no duration: take us, ms, s, m or h, as in 500ms or 10s, up to 168h")]
    Duration(String),
    /// Not a shape.
    #[error("`{0}` is no arrival: take const, poisson, ramp, step, sine, square, spike, trace or max")]
    Shape(String),
    /// A shape whose part after the colon is not as it should be.
    #[error("`{text}` is not of the form {form}")]
    Form {
        /// What was given.
        text: String,
        /// What it should be like.
        form: &'static str,
    },
    /// A shape before the last has no length.
    #[error("`{0}` needs a length, as in const:1k/5s, because another shape follows")]
    NoLength(String),
    /// A rate below nothing.
    #[error("the sine goes below 0: its amplitude is greater than its mean")]
    BelowZero,
    /// Too long and too fine.
    #[error("the plan has more than {PIECES_MAX} pieces: make it shorter, or its steps longer")]
    TooManyPieces,
    /// `max` or `trace` among other shapes.
    #[error("`{0}` cannot be joined with other shapes")]
    Alone(&'static str),
    /// The trace cannot be used.
    #[error(transparent)]
    Trace(#[from] TraceError),
}

/// How records arrive.
#[derive(Clone, Debug)]
pub(crate) enum Arrival {
    /// As fast as answers come.
    Max,
    /// By a plan.
    Plan(Arrivals),
}

/// Reads the words; the plan gets this length. `poisson` makes any shape random.
///
/// # Errors
/// See `GrammarError`.
pub(crate) fn parse(text: &str, length_ns: u64, poisson: bool, seed: u64) -> Result<Arrival, GrammarError> {
    let shapes: Vec<&str> = text.split(';').map(str::trim).collect();
    if shapes == ["max"] {
        return Ok(Arrival::Max);
    }
    if let [shape] = shapes[..]
        && let Some(path) = shape.strip_prefix("trace:")
    {
        let trace = Trace::read(&PathBuf::from(path))?;
        let spread = if poisson { Spread::RandomInPiece } else { Spread::Even };
        return Ok(Arrival::Plan(trace.arrivals(spread, seed)));
    }
    if shapes.len() > 1 {
        if shapes.contains(&"max") {
            return Err(GrammarError::Alone("max"));
        }
        if shapes.iter().any(|shape| shape.starts_with("trace:")) {
            return Err(GrammarError::Alone("trace"));
        }
    }
    let is_poisson = poisson || shapes.iter().any(|shape| shape.starts_with("poisson:"));
    let (mut segments, mut used_ns) = (Vec::new(), 0);
    for (number, shape) in shapes.iter().enumerate() {
        let is_last = number + 1 == shapes.len();
        let (shape, own_length_ns) = split_length(shape)?;
        let rest_ns = length_ns.saturating_sub(used_ns);
        let shape_ns = match own_length_ns {
            Some(own_ns) if !is_last => own_ns.min(rest_ns),
            None if !is_last => return Err(GrammarError::NoLength(shape.to_owned())),
            _ => rest_ns,
        };
        segments.extend(shape_segments(shape, shape_ns)?);
        used_ns += shape_ns;
        if segments.len() > PIECES_MAX {
            return Err(GrammarError::TooManyPieces);
        }
    }
    let spread = if is_poisson { Spread::Poisson } else { Spread::Even };
    Ok(Arrival::Plan(Arrivals::new(segments, spread, seed)))
}

/// A rate such as `20k`.
///
/// # Errors
/// `Rate`.
pub(crate) fn parse_rate(text: &str) -> Result<f64, GrammarError> {
    let wrong = || GrammarError::Rate(text.to_owned());
    let (digits, factor) = match text.trim().char_indices().last() {
        Some((at, 'k' | 'K')) => (&text.trim()[..at], 1e3),
        Some((at, 'M')) => (&text.trim()[..at], 1e6),
        _ => (text.trim(), 1.0),
    };
    let rate = digits.parse::<f64>().map_err(|_| wrong())? * factor;
    if (0.0..=RATE_MAX).contains(&rate) { Ok(rate) } else { Err(wrong()) }
}

/// A duration such as `500ms`, in nanoseconds.
///
/// # Errors
/// `Duration`.
pub(crate) fn parse_duration(text: &str) -> Result<u64, GrammarError> {
    let wrong = || GrammarError::Duration(text.to_owned());
    let text = text.trim();
    let digits = text.trim_end_matches(|letter: char| letter.is_ascii_alphabetic());
    let unit_s = match &text[digits.len()..] {
        "us" => 1e-6,
        "ms" => 1e-3,
        "s" => 1.0,
        "m" => 60.0,
        "h" => 3_600.0,
        _ => return Err(wrong()),
    };
    let seconds = digits.parse::<f64>().map_err(|_| wrong())? * unit_s;
    if (0.0..=SECONDS_MAX).contains(&seconds) {
        Ok((seconds * NS_PER_S).round() as u64)
    } else {
        Err(wrong())
    }
}

/// Cuts `const:1k/5s` into the shape and its length. Other shapes carry lengths of their own.
fn split_length(shape: &str) -> Result<(&str, Option<u64>), GrammarError> {
    if let Some((front, length)) = shape.split_once('/')
        && (shape.starts_with("const:") || shape.starts_with("poisson:"))
    {
        return Ok((front, Some(parse_duration(length)?)));
    }
    let own = match shape.split_once(':') {
        Some(("ramp", rest)) => {
            rest.rsplit_once('/').map(|(_, length)| parse_duration(length)).transpose()?
        }
        Some(("step", rest)) => Some(step(rest)?.length_ns()),
        _ => None,
    };
    Ok((shape, own))
}

fn shape_segments(shape: &str, length_ns: u64) -> Result<Vec<Segment>, GrammarError> {
    let (name, rest) = shape.split_once(':').unwrap_or((shape, ""));
    match name {
        "const" | "poisson" => Ok(vec![Segment::constant(parse_rate(rest)?, length_ns)]),
        "ramp" => ramp(rest, length_ns),
        "step" => Ok(step(rest)?.segments(length_ns)),
        "sine" => sine(rest, length_ns),
        "square" => square(rest, length_ns),
        "spike" => spike(rest, length_ns),
        _ => Err(GrammarError::Shape(shape.to_owned())),
    }
}

fn form(text: &str, form: &'static str) -> GrammarError {
    GrammarError::Form { text: text.to_owned(), form }
}

fn ramp(rest: &str, length_ns: u64) -> Result<Vec<Segment>, GrammarError> {
    let wrong = || form(rest, "ramp:1k->100k/30s");
    let (rates, ramp_length) = rest.split_once('/').ok_or_else(wrong)?;
    let (from, to) = rates.split_once("->").ok_or_else(wrong)?;
    let (from_per_s, to_per_s) = (parse_rate(from)?, parse_rate(to)?);
    let ramp_ns = parse_duration(ramp_length)?;
    if ramp_ns == 0 {
        return Err(wrong());
    }
    if ramp_ns >= length_ns {
        let share = length_ns as f64 / ramp_ns as f64;
        let to_per_s = from_per_s + (to_per_s - from_per_s) * share;
        return Ok(vec![Segment { length_ns, from_per_s, to_per_s }]);
    }
    let rise = Segment { length_ns: ramp_ns, from_per_s, to_per_s };
    Ok(vec![rise, Segment::constant(to_per_s, length_ns - ramp_ns)])
}

#[derive(Clone, Copy)]
struct Steps {
    step_per_s: f64,
    count: u32,
    step_ns: u64,
}

impl Steps {
    fn length_ns(self) -> u64 {
        self.step_ns.saturating_mul(u64::from(self.count))
    }

    fn segments(self, length_ns: u64) -> Vec<Segment> {
        let rate = |number: u32| self.step_per_s * f64::from(number);
        let mut segments = Vec::new();
        let mut used_ns = 0;
        for number in 1..=self.count {
            let is_last = number == self.count;
            let rest_ns = length_ns - used_ns;
            let step_ns = if is_last { rest_ns } else { self.step_ns.min(rest_ns) };
            segments.push(Segment::constant(rate(number), step_ns));
            used_ns += step_ns;
        }
        segments
    }
}

fn step(rest: &str) -> Result<Steps, GrammarError> {
    let wrong = || form(rest, "step:10k*10/5s");
    let (rates, length) = rest.split_once('/').ok_or_else(wrong)?;
    let (step, count) = rates.split_once('*').ok_or_else(wrong)?;
    let count: u32 = count.trim().parse().map_err(|_| wrong())?;
    if !(1..=10_000).contains(&count) {
        return Err(wrong());
    }
    Ok(Steps { step_per_s: parse_rate(step)?, count, step_ns: parse_duration(length)? })
}

fn sine(rest: &str, length_ns: u64) -> Result<Vec<Segment>, GrammarError> {
    let wrong = || form(rest, "sine:50k+-40k/20s");
    let (rates, period) = rest.split_once('/').ok_or_else(wrong)?;
    let (mean, amplitude) =
        rates.split_once("+-").or_else(|| rates.split_once('\u{b1}')).ok_or_else(wrong)?;
    let (mean, amplitude) = (parse_rate(mean)?, parse_rate(amplitude)?);
    if amplitude > mean {
        return Err(GrammarError::BelowZero);
    }
    let step_ns = parse_duration(period)? / u64::from(SINE_PIECES);
    if step_ns == 0 {
        return Err(wrong());
    }
    let rate = |number: u64| {
        let turns = (number % u64::from(SINE_PIECES)) as f64 / f64::from(SINE_PIECES);
        (mean + amplitude * (turns * std::f64::consts::TAU).sin()).max(0.0)
    };
    cut_into(length_ns, step_ns, |number, length_ns| Segment {
        length_ns,
        from_per_s: rate(number),
        to_per_s: rate(number + 1),
    })
}

fn square(rest: &str, length_ns: u64) -> Result<Vec<Segment>, GrammarError> {
    let wrong = || form(rest, "square:on=200k/1ms,off=0/99ms");
    let (on, off) = rest.split_once(',').ok_or_else(wrong)?;
    let half = |text: &str, name: &str| -> Result<(f64, u64), GrammarError> {
        let value = text.trim().strip_prefix(name).ok_or_else(wrong)?;
        let (rate, length) = value.split_once('/').ok_or_else(wrong)?;
        Ok((parse_rate(rate)?, parse_duration(length)?))
    };
    let ((on_per_s, on_ns), (off_per_s, off_ns)) = (half(on, "on=")?, half(off, "off=")?);
    let period_ns = on_ns + off_ns;
    if on_ns == 0 || off_ns == 0 {
        return Err(wrong());
    }
    let (mut segments, mut used_ns) = (Vec::new(), 0);
    if length_ns / period_ns >= PIECES_MAX as u64 / 2 {
        return Err(GrammarError::TooManyPieces);
    }
    while used_ns < length_ns {
        for (per_s, half_ns) in [(on_per_s, on_ns), (off_per_s, off_ns)] {
            segments.push(Segment::constant(per_s, half_ns.min(length_ns - used_ns)));
            used_ns = (used_ns + half_ns).min(length_ns);
        }
    }
    Ok(segments)
}

fn spike(rest: &str, length_ns: u64) -> Result<Vec<Segment>, GrammarError> {
    let wrong = || form(rest, "spike:base=20k,x10,for=10s,at=30s");
    let (mut base, mut factor, mut spike_ns, mut at_ns) = (None, None, None, None);
    for part in rest.split(',').map(str::trim) {
        if let Some(value) = part.strip_prefix("base=") {
            base = Some(parse_rate(value)?);
        } else if let Some(value) = part.strip_prefix("for=") {
            spike_ns = Some(parse_duration(value)?);
        } else if let Some(value) = part.strip_prefix("at=") {
            at_ns = Some(parse_duration(value)?);
        } else if let Some(value) = part.strip_prefix('x') {
            factor = Some(value.parse::<f64>().map_err(|_| wrong())?);
        } else {
            return Err(wrong());
        }
    }
    let (Some(base), Some(factor), Some(spike_ns), Some(at_ns)) = (base, factor, spike_ns, at_ns) else {
        return Err(wrong());
    };
    let peak = base * factor;
    if !(0.0..=RATE_MAX).contains(&peak) {
        return Err(wrong());
    }
    let before_ns = at_ns.min(length_ns);
    let inside_ns = spike_ns.min(length_ns - before_ns);
    Ok(vec![
        Segment::constant(base, before_ns),
        Segment::constant(peak, inside_ns),
        Segment::constant(base, length_ns - before_ns - inside_ns),
    ])
}

fn cut_into(
    length_ns: u64,
    step_ns: u64,
    segment: impl Fn(u64, u64) -> Segment,
) -> Result<Vec<Segment>, GrammarError> {
    let count = length_ns.div_ceil(step_ns);
    if count > PIECES_MAX as u64 {
        return Err(GrammarError::TooManyPieces);
    }
    let piece = |number: u64| segment(number, step_ns.min(length_ns - number * step_ns));
    Ok((0..count).map(piece).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    fn plan(text: &str, seconds: u64) -> Arrivals {
        match parse(text, seconds * SECOND, false, 1).unwrap() {
            Arrival::Plan(plan) => plan,
            Arrival::Max => panic!("{text} is a plan"),
        }
    }

    fn rate_at(plan: &Arrivals, second: f64) -> f64 {
        let at_ns = (second * 1e9) as u64;
        (plan.mass_until(at_ns + 1_000_000) - plan.mass_until(at_ns)) * 1e3
    }

    #[test]
    fn every_shape_has_the_mass_of_its_words() {
        for (text, seconds, mass) in [
            ("const:50k", 10, 500_000.0),
            ("poisson:1.5M", 2, 3_000_000.0),
            ("ramp:1k->100k/30s", 30, 1_515_000.0),
            ("ramp:1k->100k/30s", 15, 386_250.0),
            ("ramp:0->100/10s", 20, 1_500.0),
            ("step:10k*10/5s", 50, 2_750_000.0),
            ("step:10*2/1s", 5, 90.0),
            ("sine:50k+-40k/20s", 20, 1_000_000.0),
            ("square:on=200k/1ms,off=0/99ms", 10, 20_000.0),
            ("spike:base=20k,x10,for=10s,at=30s", 60, 3_000_000.0),
            ("const:1k/5s;ramp:1k->9k/10s;const:9k", 20, 5_000.0 + 50_000.0 + 45_000.0),
        ] {
            let found = plan(text, seconds).mass();
            assert!((found - mass).abs() < 0.01, "{text}: {found}, not {mass}");
            assert_eq!(plan(text, seconds).duration_ns(), seconds * SECOND, "{text}");
        }
    }

    #[test]
    fn sine_follows_the_sine() {
        let plan = plan("sine:50k+-40k/20s", 20);
        for (second, rate) in [(0.0, 50_000.0), (5.0, 90_000.0), (10.0, 50_000.0), (15.0, 10_000.0)] {
            assert!((rate_at(&plan, second) - rate).abs() < 100.0, "at {second}");
        }
    }

    #[test]
    fn spike_begins_and_ends_where_it_says() {
        let plan = plan("spike:base=20k,x10,for=10s,at=30s", 60);
        let rates: Vec<f64> = [29.9, 30.1, 39.9, 40.1].map(|second| rate_at(&plan, second).round()).into();
        assert_eq!(rates, [20_000.0, 200_000.0, 200_000.0, 20_000.0]);
        assert_eq!(plan.peak_per_s(), 200_000.0);
    }

    #[test]
    fn wrong_words_are_refused_with_what_would_be_right() {
        for (text, reason) in [
            ("", "is no arrival"),
            ("flood:1", "is no arrival"),
            ("const:", "is no rate"),
            ("const:-5", "is no rate"),
            ("const:5x", "is no rate"),
            ("const:9999M", "is no rate"),
            ("ramp:1k", "ramp:1k->100k/30s"),
            ("ramp:1k->2k/5", "is no duration"),
            ("step:10k/5s", "step:10k*10/5s"),
            ("sine:1k+-2k/5s", "below 0"),
            ("square:on=1/1ms", "square:on"),
            ("spike:base=1,x2,for=1s", "spike:base"),
            ("const:5;const:6", "needs a length"),
            ("max;const:5", "cannot be joined"),
            ("trace:/no/such/file.csv", "/no/such/file.csv"),
            ("square:on=1/1us,off=1/1us", "pieces"),
        ] {
            let error = parse(text, 1_000 * SECOND, false, 0).unwrap_err().to_string();
            assert!(error.contains(reason), "{text}: {error}");
        }
    }

    #[test]
    fn durations_and_rates_take_units() {
        assert_eq!(parse_duration("250us").unwrap(), 250_000);
        assert_eq!(parse_duration("1.5s").unwrap(), 1_500_000_000);
        assert_eq!(parse_duration("2m").unwrap(), 120 * SECOND);
        assert_eq!(parse_rate("20k").unwrap(), 20_000.0);
        assert_eq!(parse_rate("7").unwrap(), 7.0);
        assert!(parse_duration("10").is_err());
        assert!(parse_duration("200h").is_err());
    }
}

//! Line plots as SVG, made by hand: axes with round numbers, gridlines, shaded phases, lines, areas, and the points
//! for a script to read them out at the pointer. Nothing is fetched from anywhere; colours are CSS variables.

use std::fmt::Write;

use serde::Serialize;

/// Size of the drawing; the page scales it.
const WIDTH: f64 = 920.0;
const HEIGHT: f64 = 280.0;
const LEFT: f64 = 64.0;
const RIGHT: f64 = 16.0;
const TOP: f64 = 26.0;
const BOTTOM: f64 = 34.0;
/// Points of a line; more cannot be told apart, and the greatest of those that fall together is kept.
const POINTS_MAX: usize = 900;

/// How values lie on an axis.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Scale {
    /// Evenly, from 0.
    Linear,
    /// By powers of ten.
    Log,
    /// Percentiles: the distance to 100 % by powers of ten.
    Nines,
}

/// What values are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unit {
    /// Records, or records per second.
    Count,
    /// Microseconds.
    Time,
    /// Bytes.
    Bytes,
    /// Seconds of the run.
    Seconds,
    /// Percent of samples.
    Percentile,
}

/// One line.
#[derive(Clone, Debug)]
pub(crate) struct Line {
    /// Its name in the legend.
    pub(crate) name: String,
    /// Number of its colour, from 1 to 6.
    pub(crate) colour: u8,
    /// Whether it is dashed: what is predicted.
    pub(crate) is_dashed: bool,
    /// Whether the area below it is tinted.
    pub(crate) is_filled: bool,
    /// Its points, from left to right; a gap where a value is not known.
    pub(crate) points: Vec<(f64, Option<f64>)>,
}

/// A span of the horizontal axis that has a name.
#[derive(Clone, Debug)]
pub(crate) struct Band {
    /// Its name.
    pub(crate) name: String,
    /// From where to where.
    pub(crate) from: f64,
    /// The same.
    pub(crate) to: f64,
    /// Whether it stands out.
    pub(crate) is_marked: bool,
}

/// A plot.
#[derive(Clone, Debug)]
pub(crate) struct Plot {
    /// Its name within the page.
    pub(crate) id: &'static str,
    /// What it shows.
    pub(crate) title: String,
    /// How to read it, in a sentence.
    pub(crate) caption: String,
    /// The horizontal axis.
    pub(crate) x: (Scale, Unit),
    /// The vertical axis.
    pub(crate) y: (Scale, Unit),
    /// The lines.
    pub(crate) lines: Vec<Line>,
    /// The phases.
    pub(crate) bands: Vec<Band>,
}

/// What the script needs to read values out.
#[derive(Serialize)]
struct Points<'a> {
    left: f64,
    right: f64,
    top: f64,
    bottom: f64,
    x_unit: &'static str,
    y_unit: &'static str,
    lines: Vec<LinePoints<'a>>,
}

#[derive(Serialize)]
struct LinePoints<'a> {
    name: &'a str,
    colour: u8,
    /// Place and value of each: x, y in the drawing, then both values.
    points: Vec<[f64; 4]>,
}

/// An axis with its ends.
#[derive(Clone, Copy, Debug)]
struct Axis {
    scale: Scale,
    unit: Unit,
    low: f64,
    high: f64,
    /// Where the ends are in the drawing.
    start: f64,
    end: f64,
}

impl Axis {
    fn new((scale, unit): (Scale, Unit), values: impl Iterator<Item = f64>, ends: (f64, f64)) -> Self {
        let (mut low, mut high) = (f64::INFINITY, f64::NEG_INFINITY);
        for value in values.filter(|value| value.is_finite()) {
            low = low.min(value);
            high = high.max(value);
        }
        if low > high {
            (low, high) = (0.0, 1.0);
        }
        match scale {
            Scale::Linear if unit == Unit::Seconds => low = 0.0,
            Scale::Linear => {
                low = 0.0;
                high = if high <= 0.0 { 1.0 } else { high * 1.06 };
            }
            Scale::Log => {
                low = 10_f64.powf(low.max(1e-3).log10().floor());
                high = 10_f64.powf(high.max(1e-3).log10().ceil());
                if high <= low {
                    high = low * 10.0;
                }
            }
            Scale::Nines => {
                low = 0.0;
                high = high.clamp(90.0, 99.9999);
            }
        }
        if scale == Scale::Linear && high <= low {
            high = low + 1.0;
        }
        Self { scale, unit, low, high, start: ends.0, end: ends.1 }
    }

    fn position(&self, value: f64) -> f64 {
        let warped = |value: f64| match self.scale {
            Scale::Linear => value,
            Scale::Log => value.max(self.low).log10(),
            Scale::Nines => -(1.0 - value.min(99.9999) / 100.0).log10(),
        };
        let share = (warped(value) - warped(self.low)) / (warped(self.high) - warped(self.low));
        self.start + share.clamp(0.0, 1.0) * (self.end - self.start)
    }

    fn ticks(&self) -> Vec<f64> {
        match self.scale {
            Scale::Linear => linear_ticks(self.low, self.high),
            Scale::Log => {
                let (from, to) = (self.low.log10().round() as i32, self.high.log10().round() as i32);
                (from..=to).map(|power| 10_f64.powi(power)).collect()
            }
            Scale::Nines => [0.0, 50.0, 90.0, 99.0, 99.9, 99.99, 99.999]
                .into_iter()
                .filter(|tick| *tick <= self.high * 1.000_001)
                .collect(),
        }
    }
}

/// Round numbers, four to eight of them.
fn linear_ticks(low: f64, high: f64) -> Vec<f64> {
    let raw = (high - low) / 5.0;
    let power = 10_f64.powf(raw.log10().floor());
    let step = [1.0, 2.0, 2.5, 5.0, 10.0]
        .into_iter()
        .map(|factor| factor * power)
        .find(|step| *step >= raw)
        .unwrap_or(10.0 * power);
    let first = (low / step).ceil() as i64;
    let last = (high / step + 1e-9).floor() as i64;
    (first..=last).map(|number| number as f64 * step).collect()
}

impl Plot {
    /// The figure: title, legend, drawing, points.
    pub(crate) fn to_html(&self) -> String {
        let mut out = String::new();
        let _ = write!(
            out,
            "<figure class=\"plot\" id=\"{}\"><figcaption><h3>{}</h3><p>{}</p></figcaption>",
            self.id,
            escape(&self.title),
            escape(&self.caption)
        );
        self.legend(&mut out);
        self.drawing(&mut out);
        out.push_str("</figure>\n");
        out
    }

    fn legend(&self, out: &mut String) {
        out.push_str("<ul class=\"legend\">");
        for line in &self.lines {
            let dash = if line.is_dashed { " stroke-dasharray=\"5 4\"" } else { "" };
            let _ = write!(
                out,
                "<li><svg width=\"22\" height=\"8\" aria-hidden=\"true\"><line x1=\"1\" y1=\"4\" x2=\"21\" y2=\"4\" \
                 class=\"c{}\"{dash}/></svg>{}</li>",
                line.colour,
                escape(&line.name)
            );
        }
        out.push_str("</ul>");
    }

    fn drawing(&self, out: &mut String) {
        let xs = self.lines.iter().flat_map(|line| line.points.iter().map(|(x, _)| *x));
        let x_axis =
            Axis::new(self.x, xs.chain(self.bands.iter().map(|band| band.to)), (LEFT, WIDTH - RIGHT));
        let ys = self.lines.iter().flat_map(|line| line.points.iter().filter_map(|(_, y)| *y));
        let y_axis = Axis::new(self.y, ys, (HEIGHT - BOTTOM, TOP));
        let _ = write!(
            out,
            "<svg class=\"drawing\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" aria-label=\"{}\">",
            escape(&self.title)
        );
        self.bands(out, &x_axis);
        grid(out, &x_axis, &y_axis);
        let mut points = Points {
            left: LEFT,
            right: WIDTH - RIGHT,
            top: TOP,
            bottom: HEIGHT - BOTTOM,
            x_unit: unit_name(self.x.1),
            y_unit: unit_name(self.y.1),
            lines: Vec::new(),
        };
        for line in &self.lines {
            points.lines.push(draw_line(out, line, &x_axis, &y_axis));
        }
        out.push_str("<line class=\"pointer\" y1=\"0\" y2=\"0\"/></svg>");
        out.push_str("<div class=\"readout\" hidden></div>");
        let json = serde_json::to_string(&points).unwrap_or_default().replace('<', "\\u003c");
        let _ = write!(out, "<script type=\"application/json\">{json}</script>");
    }

    fn bands(&self, out: &mut String, axis: &Axis) {
        for band in &self.bands {
            let (from, to) = (axis.position(band.from), axis.position(band.to));
            let class = if band.is_marked { "band marked" } else { "band" };
            let _ = write!(
                out,
                "<g class=\"{class}\"><rect x=\"{from:.1}\" y=\"{TOP}\" width=\"{:.1}\" height=\"{:.1}\"/>",
                (to - from).max(0.0),
                HEIGHT - TOP - BOTTOM
            );
            // A name that does not fit is left out; the tables have it.
            if to - from > 7.0 * band.name.len() as f64 {
                let _ = write!(
                    out,
                    "<text x=\"{:.1}\" y=\"{:.1}\">{}</text>",
                    f64::midpoint(from, to),
                    TOP - 8.0,
                    escape(&band.name)
                );
            }
            out.push_str("</g>");
        }
    }
}

fn grid(out: &mut String, x_axis: &Axis, y_axis: &Axis) {
    out.push_str("<g class=\"grid\">");
    for tick in y_axis.ticks() {
        let y = y_axis.position(tick);
        let _ = write!(
            out,
            "<line x1=\"{LEFT}\" x2=\"{:.1}\" y1=\"{y:.1}\" y2=\"{y:.1}\"/><text class=\"y\" x=\"{:.1}\" \
             y=\"{:.1}\">{}</text>",
            WIDTH - RIGHT,
            LEFT - 8.0,
            y + 4.0,
            label(tick, y_axis.unit)
        );
    }
    for tick in x_axis.ticks() {
        let x = x_axis.position(tick);
        let _ = write!(
            out,
            "<line class=\"tick\" x1=\"{x:.1}\" x2=\"{x:.1}\" y1=\"{:.1}\" y2=\"{:.1}\"/><text class=\"x\" \
             x=\"{x:.1}\" y=\"{:.1}\">{}</text>",
            HEIGHT - BOTTOM,
            HEIGHT - BOTTOM + 5.0,
            HEIGHT - BOTTOM + 20.0,
            label(tick, x_axis.unit)
        );
    }
    out.push_str("</g>");
}

fn draw_line<'a>(out: &mut String, line: &'a Line, x_axis: &Axis, y_axis: &Axis) -> LinePoints<'a> {
    let mut points = Vec::new();
    let (mut path, mut is_drawing) = (String::new(), false);
    for (x, y) in thinned(&line.points) {
        let Some(y) = y else {
            is_drawing = false;
            continue;
        };
        let (at_x, at_y) = (x_axis.position(x), y_axis.position(y));
        let _ = write!(path, "{}{at_x:.1} {at_y:.1}", if is_drawing { "L" } else { "M" });
        is_drawing = true;
        points.push([round(at_x), round(at_y), x, y]);
    }
    let class = line.colour;
    if line.is_filled
        && let (Some(first), Some(last)) = (points.first(), points.last())
    {
        let floor = y_axis.start;
        let _ = write!(
            out,
            "<path class=\"area f{class}\" d=\"{path}L{:.1} {floor:.1}L{:.1} {floor:.1}Z\"/>",
            last[0], first[0]
        );
    }
    let dash = if line.is_dashed { " stroke-dasharray=\"6 5\"" } else { "" };
    // A dashed line may lie upon a filled one, and both must be seen.
    let wide = if line.is_filled { " wide" } else { "" };
    let _ = write!(
        out,
        "<path class=\"line c{class}{wide}\" data-name=\"{}\" d=\"{path}\"{dash}/>",
        escape(&line.name)
    );
    // A single point would be invisible as a line.
    if let [only] = points[..] {
        let _ = write!(out, "<circle class=\"c{class}\" cx=\"{}\" cy=\"{}\" r=\"3\"/>", only[0], only[1]);
    }
    LinePoints { name: &line.name, colour: class, points }
}

/// At most `POINTS_MAX` points: of those that fall together, the greatest.
fn thinned(points: &[(f64, Option<f64>)]) -> Vec<(f64, Option<f64>)> {
    let stride = points.len().div_ceil(POINTS_MAX).max(1);
    let greatest = |group: &[(f64, Option<f64>)]| {
        group.iter().copied().reduce(|one, other| if other.1 > one.1 { other } else { one })
    };
    points.chunks(stride).filter_map(greatest).collect()
}

fn round(value: f64) -> f64 {
    (value * 10.0).round() / 10.0
}

fn unit_name(unit: Unit) -> &'static str {
    match unit {
        Unit::Count => "count",
        Unit::Time => "time",
        Unit::Bytes => "bytes",
        Unit::Seconds => "seconds",
        Unit::Percentile => "percentile",
    }
}

/// A tick's text.
pub(crate) fn label(value: f64, unit: Unit) -> String {
    match unit {
        Unit::Count if value >= 1e6 => format!("{}M", trimmed(value / 1e6)),
        Unit::Count if value >= 1e3 => format!("{}k", trimmed(value / 1e3)),
        Unit::Count => trimmed(value),
        Unit::Time if value >= 1e6 => format!("{} s", trimmed(value / 1e6)),
        Unit::Time if value >= 1e3 => format!("{} ms", trimmed(value / 1e3)),
        Unit::Time => format!("{} \u{b5}s", trimmed(value)),
        Unit::Bytes if value >= f64::from(1 << 30) => format!("{} GiB", trimmed(value / f64::from(1 << 30))),
        Unit::Bytes => format!("{} MiB", trimmed(value / f64::from(1 << 20))),
        Unit::Seconds => format!("{} s", trimmed(value)),
        Unit::Percentile => format!("{value} %"),
    }
}

fn trimmed(value: f64) -> String {
    let text = format!("{value:.2}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// Text that may stand in HTML, also between quotes.
pub(crate) fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round_numbers_within_the_axis() {
        assert_eq!(linear_ticks(0.0, 10.0), [0.0, 2.0, 4.0, 6.0, 8.0, 10.0]);
        assert_eq!(linear_ticks(0.0, 74_000.0), [0.0, 20_000.0, 40_000.0, 60_000.0]);
        for high in [0.003, 1.0, 7.0, 99.0, 12_345.0, 8e9] {
            let ticks = linear_ticks(0.0, high);
            assert!((3..=8).contains(&ticks.len()), "{high}: {ticks:?}");
            assert!(ticks.iter().all(|tick| *tick <= high * 1.000_001));
        }
    }

    #[test]
    fn logarithmic_axis_has_its_powers_at_even_distances() {
        let axis = Axis::new((Scale::Log, Unit::Time), [150.0, 90_000.0].into_iter(), (0.0, 300.0));
        assert_eq!(axis.ticks(), [100.0, 1_000.0, 10_000.0, 100_000.0]);
        assert_eq!(axis.position(1_000.0).round(), 100.0);
        assert_eq!(axis.position(1.0), 0.0, "what is below lies on the edge");
    }

    #[test]
    fn nines_have_even_distances() {
        let axis = Axis::new((Scale::Nines, Unit::Percentile), [0.0, 99.9].into_iter(), (0.0, 300.0));
        assert_eq!(axis.position(90.0).round(), 100.0);
        assert_eq!(axis.position(99.0).round(), 200.0);
        assert_eq!(axis.ticks(), [0.0, 50.0, 90.0, 99.0, 99.9]);
    }

    #[test]
    fn thinning_keeps_the_peaks() {
        let mut points: Vec<(f64, Option<f64>)> = (0..10_000).map(|x| (f64::from(x), Some(1.0))).collect();
        points[7_777].1 = Some(99.0);
        let thin = thinned(&points);
        assert!(thin.len() <= POINTS_MAX);
        assert!(thin.iter().any(|(_, y)| *y == Some(99.0)));
    }

    #[test]
    fn text_is_escaped() {
        let line = Line {
            name: "</script><b>".to_owned(),
            colour: 1,
            is_dashed: true,
            is_filled: true,
            points: vec![(0.0, Some(1.0)), (1.0, None), (2.0, Some(3.0))],
        };
        let plot = Plot {
            id: "x",
            title: "a < b & \"c\"".to_owned(),
            caption: String::new(),
            x: (Scale::Linear, Unit::Seconds),
            y: (Scale::Linear, Unit::Count),
            lines: vec![line],
            bands: Vec::new(),
        };
        let html = plot.to_html();
        assert!(html.contains("a &lt; b &amp; &quot;c&quot;"));
        assert_eq!(html.matches("</script>").count(), 1, "{html}");
        assert!(html.contains("stroke-dasharray") && html.contains("class=\"area f1\""));
    }
}

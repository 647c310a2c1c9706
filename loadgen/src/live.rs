//! `--tui`: the run as it goes, on the whole terminal: rates, backlog beside its prediction, latency, what is left.
//!
//! Drawn once a second on the thread that watches. Keys stay the terminal's own, so Ctrl-C ends the run as without
//! it; the screen is given back when the value is dropped, also after an error.

use std::io::{self, IsTerminal, Stdout};
use std::time::Duration;

use ratatui::backend::{Backend, CrosstermBackend};
use ratatui::crossterm::cursor::{Hide, Show};
use ratatui::crossterm::execute;
use ratatui::crossterm::terminal::{EnterAlternateScreen, LeaveAlternateScreen};
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::symbols::Marker;
use ratatui::text::{Line, Span};
use ratatui::widgets::{Axis, Block, Chart, Dataset, GraphType, Paragraph};
use ratatui::{Frame, Terminal};

use crate::plot::{Unit, label};
use crate::result::Second;
use crate::watch::{Viewer, human_count, human_time};

/// Seconds that are kept on the screen.
const SECONDS_MAX: usize = 3_600;

/// Shortest interval whose rates are drawn.
const SECOND_MIN: f64 = 0.5;

/// What is drawn.
#[derive(Debug, Default)]
struct Picture {
    series: Vec<Second>,
    left: Option<Duration>,
}

/// The live view on a terminal.
pub(crate) struct LiveView {
    terminal: Terminal<CrosstermBackend<Stdout>>,
    picture: Picture,
}

impl LiveView {
    /// Takes the screen; none where standard output is no terminal.
    ///
    /// # Errors
    /// When the terminal cannot be written.
    pub(crate) fn open() -> io::Result<Option<Self>> {
        if !io::stdout().is_terminal() {
            return Ok(None);
        }
        let mut terminal = Terminal::new(CrosstermBackend::new(io::stdout()))?;
        execute!(io::stdout(), EnterAlternateScreen, Hide)?;
        terminal.clear()?;
        Ok(Some(Self { terminal, picture: Picture::default() }))
    }
}

impl Drop for LiveView {
    fn drop(&mut self) {
        // Nobody is left to tell.
        let _ = execute!(io::stdout(), LeaveAlternateScreen, Show);
    }
}

impl Viewer for LiveView {
    fn on_second(&mut self, second: &Second, left: Option<Duration>) {
        self.picture.add(second, left);
        // A terminal that has gone must not end the run.
        let _ = draw(&mut self.terminal, &self.picture);
    }
}

impl Picture {
    fn add(&mut self, second: &Second, left: Option<Duration>) {
        // What is left of a second at the end of a phase is too short for a rate.
        if second.t_s - self.series.last().map_or(0.0, |last| last.t_s) < SECOND_MIN {
            return;
        }
        if self.series.len() == SECONDS_MAX {
            self.series.remove(0);
        }
        self.series.push(second.clone());
        self.left = left;
    }

    fn points(&self, value: impl Fn(&Second) -> Option<f64>) -> Vec<(f64, f64)> {
        self.series.iter().filter_map(|second| Some((second.t_s, value(second)?))).collect()
    }
}

fn draw<B: Backend>(terminal: &mut Terminal<B>, picture: &Picture) -> Result<(), B::Error> {
    terminal.draw(|frame| render(frame, picture)).map(|_| ())
}

fn render(frame: &mut Frame<'_>, picture: &Picture) {
    let [head, rates, backlog, latency] = Layout::vertical([
        Constraint::Length(4),
        Constraint::Fill(1),
        Constraint::Fill(1),
        Constraint::Fill(1),
    ])
    .areas(frame.area());
    render_head(frame, head, picture);
    let lines = [
        Curve::new("offered", Color::DarkGray, picture.points(|second| Some(second.offered_per_s))),
        Curve::new("acknowledged", Color::Blue, picture.points(|second| Some(second.acked_per_s))),
        Curve::new("consumed", Color::Green, picture.points(|second| Some(second.consumed_per_s))),
    ];
    render_chart(frame, rates, "records per second", Unit::Count, &lines);
    let lines = [
        Curve::new("predicted", Color::DarkGray, picture.points(|second| second.predicted_backlog_records)),
        Curve::new("backlog", Color::Yellow, picture.points(|second| Some(second.backlog_records as f64))),
    ];
    render_chart(frame, backlog, "records that wait", Unit::Count, &lines);
    let lines = [
        Curve::new("p99", Color::Yellow, picture.points(|second| second.ack_p99_us)),
        Curve::new("p50", Color::Blue, picture.points(|second| second.ack_p50_us)),
    ];
    render_chart(frame, latency, "ack latency, from intended", Unit::Time, &lines);
}

fn render_head(frame: &mut Frame<'_>, area: Rect, picture: &Picture) {
    let Some(second) = picture.series.last() else { return };
    let time = |us: Option<f64>| us.map_or_else(|| "-".to_owned(), human_time);
    let left = picture.left.map_or_else(String::new, |left| format!("   {:.0} s left", left.as_secs_f64()));
    let bold = Style::default().add_modifier(Modifier::BOLD);
    let figures = Line::from(format!(
        "acked {}/s  consumed {}/s  backlog {}  ack p50 {}  p99 {}  max {}  busy {}  refused {}",
        human_count(second.acked_per_s),
        human_count(second.consumed_per_s),
        human_count(second.backlog_records as f64),
        time(second.ack_p50_us),
        time(second.ack_p99_us),
        time(second.ack_max_us),
        second.busy_frames,
        second.refused_frames
    ));
    let title = Line::from(vec![
        Span::styled(format!("{:.0} s  {}", second.t_s, second.phase), bold),
        Span::raw(left),
        Span::styled("   Ctrl-C ends it with a report", Style::default().fg(Color::DarkGray)),
    ]);
    frame.render_widget(Paragraph::new(vec![title, figures]).block(Block::bordered().title("loadgen")), area);
}

struct Curve {
    name: &'static str,
    colour: Color,
    points: Vec<(f64, f64)>,
}

impl Curve {
    fn new(name: &'static str, colour: Color, points: Vec<(f64, f64)>) -> Self {
        Self { name, colour, points }
    }
}

fn render_chart(frame: &mut Frame<'_>, area: Rect, title: &str, unit: Unit, curves: &[Curve]) {
    let points = || curves.iter().flat_map(|curve| &curve.points);
    let highest = points().map(|(_, y)| *y).fold(1.0, f64::max) * 1.05;
    let first = points().map(|(x, _)| *x).fold(f64::INFINITY, f64::min).min(0.0);
    let last = points().map(|(x, _)| *x).fold(10.0, f64::max);
    let datasets = curves.iter().map(|curve| {
        Dataset::default()
            .marker(Marker::Braille)
            .graph_type(GraphType::Line)
            .style(Style::default().fg(curve.colour))
            .data(&curve.points)
    });
    let x_axis = Axis::default()
        .bounds([first, last])
        .labels([label(first, Unit::Seconds), label(last.round(), Unit::Seconds)]);
    let y_axis = Axis::default().bounds([0.0, highest]).labels([label(0.0, unit), label(highest, unit)]);
    // In the frame it hides no curve.
    let names = curves.iter().map(|curve| Span::styled(format!("  {}", curve.name), curve.colour));
    let legend = Line::from_iter(std::iter::once(Span::raw(format!("{title} "))).chain(names));
    let chart = Chart::new(datasets.collect())
        .block(Block::bordered().title(legend))
        .legend_position(None)
        .x_axis(x_axis)
        .y_axis(y_axis);
    frame.render_widget(chart, area);
}

#[cfg(test)]
mod tests {
    use super::*;
    use ratatui::backend::TestBackend;

    #[test]
    fn screen_shows_the_phase_the_figures_and_all_curves() {
        let mut picture = Picture::default();
        for number in 1..=20_u32 {
            let second = Second {
                t_s: f64::from(number),
                phase: "spike".to_owned(),
                acked_per_s: 100.0 * f64::from(number),
                backlog_records: u64::from(number) * 50,
                predicted_backlog_records: Some(f64::from(number) * 51.0),
                ack_p50_us: Some(150.0),
                ack_p99_us: Some(300.0),
                ..Second::default()
            };
            picture.add(&second, Some(Duration::from_secs(12)));
        }
        let mut terminal = Terminal::new(TestBackend::new(120, 40)).unwrap();
        draw(&mut terminal, &picture).unwrap();
        let screen = terminal.backend().to_string();
        for text in [
            "20 s  spike",
            "12 s left",
            "acked 2000/s",
            "backlog 1000",
            "predicted",
            "p99 300 us",
            "acknowledged",
        ] {
            assert!(screen.contains(text), "{text}:\n{screen}");
        }
        let dots = screen.chars().filter(|letter| ('\u{2801}'..='\u{28ff}').contains(letter)).count();
        assert!(dots > 100, "curves are drawn: {dots}\n{screen}");
        draw(&mut Terminal::new(TestBackend::new(20, 5)).unwrap(), &picture).unwrap();
        draw(&mut terminal, &Picture::default()).unwrap();
    }
}

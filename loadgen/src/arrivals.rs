//! When records should be sent: a pure plan, made once, that knows neither answers nor lateness.
//!
//! A plan is a list of pieces of time, in each of which the rate runs straight from one value to another. Its
//! integral, the *mass*, says how many records should have been sent by a moment. Frame `k` of an even plan is due
//! when the mass reaches `k` batches; a random plan lets the mass grow by exponential steps instead, which gives a
//! Poisson process for any shape of the rate (time change of the unit process). A frame that goes out late keeps its
//! due time, so a stall is seen by every frame that should have been sent during it.
//!
//! Invariant: due times never decrease, and lie within the plan's duration.

mod cursor;
mod grammar;
mod trace;

pub(crate) use cursor::Cursor;
pub(crate) use grammar::{Arrival, parse, parse_duration, parse_rate};
pub(crate) use trace::{Trace, TraceError};

/// Most pieces of a plan: a day of one-second steps, or an hour of square waves of 7 ms.
pub(crate) const PIECES_MAX: usize = 1 << 20;
/// Masses are kept in steps of this part of a record, so that whole numbers of records stay whole.
const MASS_STEPS: f64 = 1_024.0;
const NS_PER_S: f64 = 1e9;

/// How due times lie around the rate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Spread {
    /// At even distances of mass.
    Even,
    /// As a Poisson process.
    Poisson,
    /// Each piece has exactly the records that its rate gives, at random moments within it: a trace's second.
    RandomInPiece,
}

/// A part of a plan in which the rate runs straight from `from_per_s` to `to_per_s`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Segment {
    /// Its length.
    pub(crate) length_ns: u64,
    /// Records per second at its start.
    pub(crate) from_per_s: f64,
    /// Records per second at its end.
    pub(crate) to_per_s: f64,
}

impl Segment {
    /// One of constant rate.
    pub(crate) fn constant(per_s: f64, length_ns: u64) -> Self {
        Self { length_ns, from_per_s: per_s, to_per_s: per_s }
    }
}

#[derive(Clone, Copy, Debug)]
struct Piece {
    segment: Segment,
    start_ns: u64,
    start_mass: f64,
}

impl Piece {
    fn end_ns(&self) -> u64 {
        self.start_ns.saturating_add(self.segment.length_ns)
    }

    /// Records from its start until `time_ns` of the plan.
    fn mass_until(&self, time_ns: u64) -> f64 {
        let Segment { length_ns, from_per_s, to_per_s } = self.segment;
        let inside_ns = time_ns.saturating_sub(self.start_ns).min(length_ns);
        if length_ns == 0 {
            return 0.0;
        }
        let share = inside_ns as f64 / length_ns as f64;
        let mean_per_s = from_per_s + (to_per_s - from_per_s) * share / 2.0;
        mean_per_s * inside_ns as f64 / NS_PER_S
    }

    /// When its mass reaches `mass`, which lies within it; never its end.
    fn time_of(&self, mass: f64) -> u64 {
        let Segment { length_ns, from_per_s, to_per_s } = self.segment;
        let mass = mass - self.start_mass;
        let seconds = if from_per_s == to_per_s {
            mass / from_per_s
        } else {
            // The root of `from t + slope t^2 / 2 = mass` that does not cancel.
            let slope = (to_per_s - from_per_s) * NS_PER_S / length_ns as f64;
            2.0 * mass / (from_per_s + (from_per_s * from_per_s + 2.0 * slope * mass).max(0.0).sqrt())
        };
        let inside_ns = if seconds.is_finite() { (seconds * NS_PER_S).round() as u64 } else { 0 };
        self.start_ns + inside_ns.min(length_ns.saturating_sub(1))
    }
}

/// A plan.
#[derive(Clone, Debug)]
pub(crate) struct Arrivals {
    pieces: Vec<Piece>,
    end_ns: u64,
    mass: f64,
    spread: Spread,
    seed: u64,
}

impl Arrivals {
    /// The segments one after the other. `seed` decides all that is random.
    pub(crate) fn new(segments: impl IntoIterator<Item = Segment>, spread: Spread, seed: u64) -> Self {
        let (mut pieces, mut start_ns, mut start_mass) = (Vec::new(), 0_u64, 0.0);
        for segment in segments {
            assert!(segment.from_per_s >= 0.0);
            assert!(segment.to_per_s >= 0.0);
            let piece = Piece { segment, start_ns, start_mass };
            start_mass = snapped(start_mass + piece.mass_until(piece.end_ns()));
            start_ns = piece.end_ns();
            pieces.push(piece);
        }
        assert!(pieces.len() <= PIECES_MAX);
        Self { pieces, end_ns: start_ns, mass: start_mass, spread, seed }
    }

    /// The same rate all the time.
    pub(crate) fn constant(per_s: f64, length_ns: u64) -> Self {
        Self::new([Segment::constant(per_s, length_ns)], Spread::Even, 0)
    }

    /// Its length.
    pub(crate) fn duration_ns(&self) -> u64 {
        self.end_ns
    }

    /// Records that should be sent in all; of a random plan, on average.
    #[cfg(test)]
    pub(crate) fn mass(&self) -> f64 {
        self.mass
    }

    /// Records that should be sent before `time_ns`; of a random plan, on average.
    pub(crate) fn mass_until(&self, time_ns: u64) -> f64 {
        match self.piece_at(time_ns) {
            Some(piece) => piece.start_mass + piece.mass_until(time_ns),
            None => self.mass,
        }
    }

    /// The highest rate.
    #[cfg(test)]
    pub(crate) fn peak_per_s(&self) -> f64 {
        let highest = |piece: &Piece| piece.segment.from_per_s.max(piece.segment.to_per_s);
        self.pieces.iter().map(highest).fold(0.0, f64::max)
    }

    /// Frames of `batch_records` records that are due in the whole of an even plan.
    #[cfg(test)]
    pub(crate) fn frame_count(&self, batch_records: u64) -> u64 {
        (self.mass / batch_records as f64).ceil() as u64
    }

    fn piece_at(&self, time_ns: u64) -> Option<&Piece> {
        let index = self.pieces.partition_point(|piece| piece.end_ns() <= time_ns);
        self.pieces.get(index)
    }

    /// The mass behind a piece.
    fn end_mass(&self, index: usize) -> f64 {
        self.pieces.get(index + 1).map_or(self.mass, |next| next.start_mass)
    }
}

fn snapped(mass: f64) -> f64 {
    (mass * MASS_STEPS).round() / MASS_STEPS
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    #[test]
    fn integral_of_the_rate_is_the_count() {
        for rate in [1, 3, 7, 1_000, 1_001, 999_983, 1_000_000, 13_000_000_u64] {
            for seconds in [1, 2, 10, 3_600] {
                let plan = Arrivals::constant(rate as f64, seconds * SECOND);
                assert_eq!(plan.frame_count(1), rate * seconds);
            }
        }
        assert_eq!(Arrivals::constant(1_000.0, 10 * SECOND).frame_count(64), 157);
        assert_eq!(Arrivals::constant(3.0, SECOND / 2).frame_count(1), 2);
    }

    #[test]
    fn ramp_has_the_mass_of_its_mean_and_the_time_of_each_mass() {
        let ramp = Segment { length_ns: 10 * SECOND, from_per_s: 0.0, to_per_s: 200.0 };
        let plan = Arrivals::new([ramp], Spread::Even, 0);
        assert_eq!(plan.mass(), 1_000.0);
        assert_eq!(plan.mass_until(5 * SECOND), 250.0);
        assert_eq!(plan.pieces[0].time_of(250.0), 5 * SECOND);
        assert_eq!(plan.peak_per_s(), 200.0);
        let down = Segment { length_ns: 10 * SECOND, from_per_s: 200.0, to_per_s: 0.0 };
        let plan = Arrivals::new([down], Spread::Even, 0);
        assert_eq!(plan.pieces[0].time_of(750.0), 5 * SECOND);
        assert!(plan.pieces[0].time_of(999.999) < 10 * SECOND);
    }

    #[test]
    fn mass_goes_on_over_the_pieces_and_stays_behind_the_last() {
        let plan = Arrivals::new(
            [
                Segment::constant(10.0, SECOND),
                Segment::constant(0.0, SECOND),
                Segment::constant(100.0, SECOND),
            ],
            Spread::Even,
            0,
        );
        let masses: Vec<f64> = (0..8).map(|half| plan.mass_until(half * SECOND / 2)).collect();
        assert_eq!(masses, [0.0, 5.0, 10.0, 10.0, 10.0, 60.0, 110.0, 110.0]);
        assert_eq!(plan.duration_ns(), 3 * SECOND);
    }
}

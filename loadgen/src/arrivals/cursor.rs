//! One connection's way through a plan: its due times, one after the other, without looking at anything else.
//!
//! Connection `c` of `C` has the frames `c`, `c + C`, `c + 2C`, ... of an even plan. Of a Poisson plan it has an
//! independent process of a `C`-th of the rate: together they are the Poisson process of the whole rate.

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::{Arrivals, Piece, Spread};

/// Where a connection is in its share of a plan.
#[derive(Clone, Debug)]
pub(crate) struct Cursor {
    /// Frames from one of this connection to its next.
    stride: u64,
    batch_records: u64,
    /// Number of the next frame in an even plan.
    number: u64,
    /// Mass of the next frame in a Poisson plan.
    mass: f64,
    /// Piece that the last frame was in.
    piece: usize,
    /// Frames that are still to come in the piece, and how far in it they begin (0 to 1).
    left_in_piece: u64,
    share_in_piece: f64,
    random: ChaCha8Rng,
}

impl Cursor {
    /// The start of the share of one connection of `connections`.
    pub(crate) fn new(plan: &Arrivals, connection: usize, connections: usize, batch_records: u64) -> Self {
        assert!(connection < connections);
        assert!(batch_records > 0);
        let mut random = ChaCha8Rng::seed_from_u64(plan.seed);
        random.set_stream(connection as u64);
        let mut cursor = Self {
            stride: connections as u64,
            batch_records,
            number: connection as u64,
            mass: 0.0,
            piece: 0,
            left_in_piece: 0,
            share_in_piece: 0.0,
            random,
        };
        cursor.mass = cursor.exponential_mass();
        cursor
    }

    /// When the next frame is due, in nanoseconds since the plan's start; `None` behind the last.
    pub(crate) fn next_due_ns(&mut self, plan: &Arrivals) -> Option<u64> {
        match plan.spread {
            Spread::Even => {
                let mass = (self.number * self.batch_records) as f64;
                let piece = self.piece_of(plan, mass)?;
                self.number += self.stride;
                Some(piece.time_of(mass))
            }
            Spread::Poisson => {
                let mass = self.mass;
                let piece = self.piece_of(plan, mass)?;
                self.mass += self.exponential_mass();
                Some(piece.time_of(mass))
            }
            Spread::RandomInPiece => self.next_in_piece(plan),
        }
    }

    /// The piece that holds this mass; masses only grow.
    fn piece_of<'a>(&mut self, plan: &'a Arrivals, mass: f64) -> Option<&'a Piece> {
        if mass >= plan.mass {
            return None;
        }
        while plan.end_mass(self.piece) <= mass {
            self.piece += 1;
        }
        Some(&plan.pieces[self.piece])
    }

    fn next_in_piece(&mut self, plan: &Arrivals) -> Option<u64> {
        while self.left_in_piece == 0 {
            // `number` is the first frame of this connection that is in no piece yet.
            let end_mass = plan.end_mass(self.piece);
            let frames_end = (end_mass / self.batch_records as f64).ceil() as u64;
            if self.number < frames_end {
                self.left_in_piece = (frames_end - self.number).div_ceil(self.stride);
                self.share_in_piece = 0.0;
                break;
            }
            self.piece += 1;
            if self.piece >= plan.pieces.len() {
                return None;
            }
        }
        let piece = &plan.pieces[self.piece];
        // The least of `left` uniform numbers above the one before it.
        let uniform: f64 = self.random.random();
        self.share_in_piece +=
            (1.0 - self.share_in_piece) * (1.0 - (1.0 - uniform).powf(1.0 / self.left_in_piece as f64));
        self.left_in_piece -= 1;
        self.number += self.stride;
        let length_ns = piece.segment.length_ns;
        let inside_ns = (self.share_in_piece * length_ns as f64) as u64;
        let due_ns = piece.start_ns + inside_ns.min(length_ns.saturating_sub(1));
        Some(due_ns)
    }

    fn exponential_mass(&mut self) -> f64 {
        let uniform: f64 = self.random.random();
        -(1.0 - uniform).ln() * (self.stride * self.batch_records) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arrivals::Segment;

    const SECOND: u64 = 1_000_000_000;

    /// Due times of all connections together, in order.
    fn due(plan: &Arrivals, connections: usize, batch_records: u64) -> Vec<u64> {
        let mut all = Vec::new();
        for connection in 0..connections {
            let mut cursor = Cursor::new(plan, connection, connections, batch_records);
            let mut last_ns = 0;
            while let Some(due_ns) = cursor.next_due_ns(plan) {
                assert!(due_ns >= last_ns, "due times never decrease");
                assert!(due_ns < plan.duration_ns());
                last_ns = due_ns;
                all.push(due_ns);
            }
            assert_eq!(cursor.next_due_ns(plan), None, "the end stays the end");
        }
        all.sort_unstable();
        all
    }

    #[test]
    fn exactly_the_counted_frames_are_due() {
        for (rate, batch, length_ns) in
            [(1_000.0, 1, 999_999_999), (999_983.0, 7, 1_234_567_890), (7.0, 3, 5_000_000_001)]
        {
            let plan = Arrivals::constant(rate, length_ns);
            for connections in [1, 3, 16] {
                assert_eq!(due(&plan, connections, batch).len() as u64, plan.frame_count(batch));
            }
        }
    }

    #[test]
    fn even_frames_have_even_distances_and_do_not_drift() {
        let plan = Arrivals::constant(999_983.0, SECOND);
        let due = due(&plan, 4, 1);
        assert!(due.windows(2).all(|pair| (1_000..=1_001).contains(&(pair[1] - pair[0]))));
        let hour = Arrivals::constant(1_000.0, 3_600 * SECOND);
        let mut cursor = Cursor::new(&hour, 0, 1, 1);
        cursor.number = 3_000_000;
        assert_eq!(cursor.next_due_ns(&hour), Some(3_000 * SECOND));
    }

    #[test]
    fn plan_is_the_same_however_many_connections_share_it() {
        let ramp = Segment { length_ns: SECOND, from_per_s: 100.0, to_per_s: 5_000.0 };
        let plan = Arrivals::new([ramp, Segment::constant(50.0, SECOND)], Spread::Even, 0);
        assert_eq!(due(&plan, 1, 2), due(&plan, 7, 2));
    }

    #[test]
    fn poisson_has_its_rate_and_the_spread_of_a_poisson_process() {
        let plan = Arrivals::new([Segment::constant(10_000.0, 20 * SECOND)], Spread::Poisson, 7);
        for connections in [1, 5] {
            let due = due(&plan, connections, 1);
            // 200,000 expected, with a deviation of 447.
            assert!((due.len() as f64 - 200_000.0).abs() < 5.0 * 447.0, "{}", due.len());
            let mut counts = vec![0_f64; 2_000];
            for due_ns in &due {
                counts[(due_ns / 10_000_000) as usize] += 1.0;
            }
            let mean = counts.iter().sum::<f64>() / counts.len() as f64;
            let variance =
                counts.iter().map(|count| (count - mean).powi(2)).sum::<f64>() / counts.len() as f64;
            assert!((0.85..1.15).contains(&(variance / mean)), "{variance} for a mean of {mean}");
        }
    }

    #[test]
    fn poisson_follows_the_shape_of_the_rate() {
        let ramp = Segment { length_ns: 10 * SECOND, from_per_s: 0.0, to_per_s: 20_000.0 };
        let due = due(&Arrivals::new([ramp], Spread::Poisson, 3), 2, 1);
        let first_half = due.iter().filter(|due_ns| **due_ns < 5 * SECOND).count();
        assert!((0.24..0.26).contains(&(first_half as f64 / due.len() as f64)));
    }

    #[test]
    fn random_within_a_piece_keeps_the_count_of_every_piece() {
        let counts = [25.0, 0.0, 43.0, 1.0, 36.0];
        let pieces = counts.map(|count| Segment::constant(count, SECOND));
        let plan = Arrivals::new(pieces, Spread::RandomInPiece, 11);
        for connections in [1, 3, 8] {
            let due = due(&plan, connections, 1);
            for (second, count) in counts.iter().enumerate() {
                let found = due.iter().filter(|due_ns| **due_ns / SECOND == second as u64).count();
                assert_eq!(found as f64, *count, "second {second}, {connections} connections");
            }
        }
    }

    #[test]
    fn seed_decides_all_that_is_random() {
        let plan = |seed| Arrivals::new([Segment::constant(100.0, SECOND)], Spread::Poisson, seed);
        assert_eq!(due(&plan(1), 3, 1), due(&plan(1), 3, 1));
        assert_ne!(due(&plan(1), 3, 1), due(&plan(2), 3, 1));
    }
}

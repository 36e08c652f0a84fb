//! Other libraries, measured in turns with a device's kernels. The crate links none: a development tool brings them.

use std::time::Duration;

use crate::op::Op;

/// A library that computes some operations. Errors are reasons, told to the reader.
pub trait Rival {
    /// Its name, with the variant where there are several.
    fn name(&self) -> &str;

    /// Its version.
    fn version(&self) -> &str;

    /// Gets ready for the operation: `operands` are the plain bytes of each operand in order, an output's undefined. `sets` copies of the
    /// weights are to be rotated through, so that they come from where the device's come from.
    fn prepare(&mut self, op: &Op, operands: &[Vec<u8>], sets: usize) -> Result<(), String>;

    /// Launches so many times, and says how long all of them took together.
    fn time(&mut self, launches: usize) -> Result<Duration, String>;

    /// The bytes of the operation's output after a launch.
    fn output(&mut self) -> Result<Vec<u8>, String>;
}

/// A library without a result for an operation.
#[derive(Debug, Clone, PartialEq)]
pub struct LeftOut {
    /// The library's name.
    pub name: String,
    /// Why: it cannot run the operation, failed, or computed something else.
    pub why: String,
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::{
        bench::{Code, Options, Suite, measure_beside},
        dispatch::Device,
        op::{Array, Arrays, Role},
        reference::Reference,
    };

    /// Answers with the reference's result times a factor.
    struct Fake(f64, Vec<u8>);

    impl Rival for Fake {
        fn name(&self) -> &str {
            "fake"
        }

        fn version(&self) -> &str {
            "1"
        }

        fn prepare(&mut self, op: &Op, operands: &[Vec<u8>], _sets: usize) -> Result<(), String> {
            let mut arrays = Arrays::default();
            for (o, bytes) in op.operands().iter().zip(operands) {
                let array = if o.role == Role::Out { Ok(Array::zeros(o.spec)) } else { Array::decode(o.spec, bytes) };
                arrays.push(o.name, array.map_err(|e| e.to_string())?);
            }
            op.reference(&mut arrays).map_err(|e| e.to_string())?;
            self.1 = arrays
                .get("out")
                .ok_or("no output")?
                .data
                .iter()
                .flat_map(|&v| ((v * self.0) as f32).to_le_bytes())
                .collect();
            Ok(())
        }

        fn time(&mut self, launches: usize) -> Result<Duration, String> {
            Ok(Duration::from_millis(1) * launches as u32)
        }

        fn output(&mut self) -> Result<Vec<u8>, String> {
            Ok(self.1.clone())
        }
    }

    #[test]
    fn right_peers_get_a_row_and_wrong_ones_a_reason() {
        let device = Device::new(0, Arc::new(Reference::open(&Default::default())), true);
        let op: Op = "matmul x=f32:5x64 w=f32:9x64 out=f32:5x9".parse().expect("an operation");
        let options = Options { budget: Duration::from_millis(5), ..Options::new(Suite::Quick) };
        let (mut right, mut wrong, mut nan) = (Fake(1.0, vec![]), Fake(1.01, vec![]), Fake(f64::NAN, vec![]));
        let mut rivals: Vec<&mut dyn Rival> = vec![&mut right, &mut wrong, &mut nan];
        let (records, left_out) =
            measure_beside(&device, &op, &options, &Code::of_this_build(), &mut rivals).expect("runs");
        let peers: Vec<_> = records.iter().filter_map(|r| r.peer.as_ref().map(|p| (p, r))).collect();
        let [(peer, record)] = peers[..] else { panic!("{} rows of peers", peers.len()) };
        assert_eq!((peer.peer.as_str(), peer.median), ("fake", 1_000_000));
        assert!((peer.ratio - 1e6 / record.samples.median as f64).abs() < 1e-9);
        assert!(left_out.len() == 2 && left_out.iter().all(|l| l.why.contains("wrong result")), "{left_out:?}");
    }
}

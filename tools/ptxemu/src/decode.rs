//! Opcodes: from their text to what the executor switches on. Anything unknown is an error.

#[derive(Debug, Clone, Copy, PartialEq)]
pub enum K {
    Mov,
    Add,
    Sub,
    Mul,
    MulWide,
    MulHi,
    Mad,
    MadWide,
    Fma,
    Div,
    Rem,
    Min,
    Max,
    Neg,
    Abs,
    Shl,
    Shr,
    And,
    Or,
    Xor,
    Not,
    Setp,
    Selp,
    Cvt,
    CvtPack,
    Ld,
    St,
    Cvta,
    Bra,
    Bar,
    BarWarp,
    ClusterArrive,
    ClusterWait,
    Mapa,
    Ret,
    Shfl,
    Vote,
    Elect,
    CopyThere,
    Atom,
    Prmt,
    Bfe,
    Shf,
    Bfi,
    Lop3,
    Dp4a,
    Popc,
    Clz,
    Ex2,
    Lg2,
    Rcp,
    Rsqrt,
    Sqrt,
    Mma,
    Ldmatrix,
    CpAsync,
    CpCommit,
    CpWait,
    CpWaitAll,
    MbInit,
    MbArrive,
    MbExpect,
    MbTry,
    Tma,
    Wgmma,
    WgFence,
    WgCommit,
    WgWait,
    Registers,
    Nop,
    Waits,
    LetsNext,
}
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum T {
    U(u8),
    S(u8),
    F16,
    F16x2,
    BF16,
    BF16x2,
    E4M3,
    F32,
    F64,
    Pred,
}
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Sp {
    Gen,
    Global,
    Shared,
    Param,
    Local,
    Const,
}
#[derive(Debug, Clone)]
pub struct Op {
    pub k: K,
    pub t: T,
    pub st: T,
    pub cmp: u8,
    pub sp: Sp,
    pub n: u8,
    pub m: [u16; 3],
    pub flag: u8,
}
fn ty(s: &str) -> Option<T> {
    Some(match s {
        "pred" => T::Pred,
        "f16" => T::F16,
        "f16x2" => T::F16x2,
        "bf16" => T::BF16,
        "bf16x2" => T::BF16x2,
        "e4m3" => T::E4M3,
        "f32" => T::F32,
        "f64" => T::F64,
        _ => {
            let n: u8 = s.get(1..)?.parse().ok()?;
            if ![8, 16, 32, 64].contains(&n) {
                return None;
            }
            match s.as_bytes()[0] {
                b'u' | b'b' => T::U(n / 8),
                b's' => T::S(n / 8),
                _ => return None,
            }
        }
    })
}
pub const CMP: [&str; 18] = [
    "eq", "ne", "lt", "le", "gt", "ge", "lo", "ls", "hi", "hs", "equ", "neu", "ltu", "gtu", "leu", "geu", "num", "nan",
];
pub fn decode(s: &str) -> Op {
    let p: Vec<&str> = s.split('.').collect();
    let tys: Vec<T> = p[1..].iter().filter_map(|x| ty(x)).collect();
    let has = |x: &str| p.contains(&x);
    let sp = if p.iter().any(|x| x.starts_with("shared")) {
        Sp::Shared
    } else if has("global") {
        Sp::Global
    } else if has("param") {
        Sp::Param
    } else if has("local") {
        Sp::Local
    } else if has("const") {
        Sp::Const
    } else {
        Sp::Gen
    };
    let mut o = Op {
        k: K::Nop,
        t: *tys.first().unwrap_or(&T::U(4)),
        st: *tys.last().unwrap_or(&T::U(4)),
        cmp: 0,
        sp,
        n: if has("v2") {
            2
        } else if has("v4") {
            4
        } else {
            1
        },
        m: [0; 3],
        flag: 0,
    };
    o.k = match p[0] {
        "mov" => K::Mov,
        "add" => K::Add,
        "sub" => K::Sub,
        "mul" if has("wide") => K::MulWide,
        "mul" if has("hi") => K::MulHi,
        "mul" => K::Mul,
        "mad" if has("wide") => K::MadWide,
        "mad" => K::Mad,
        "fma" => K::Fma,
        "div" => K::Div,
        "rem" => K::Rem,
        "min" => K::Min,
        "max" => K::Max,
        "neg" => K::Neg,
        "abs" => K::Abs,
        "shl" => K::Shl,
        "shr" => K::Shr,
        "and" => K::And,
        "or" => K::Or,
        "xor" => K::Xor,
        "not" => K::Not,
        "selp" => K::Selp,
        "ld" | "ldu" => K::Ld,
        "st" => K::St,
        "bra" => K::Bra,
        "ret" | "exit" => K::Ret,
        "prmt" => K::Prmt,
        "shf" => {
            assert!(has("wrap"), "shift not supported: {s}");
            o.flag = has("r") as u8;
            K::Shf
        }
        "bfe" => K::Bfe,
        "bfi" => K::Bfi,
        "lop3" => K::Lop3,
        "dp4a" => K::Dp4a,
        "popc" => K::Popc,
        "clz" => K::Clz,
        "ex2" => K::Ex2,
        "lg2" => K::Lg2,
        "rcp" => K::Rcp,
        "rsqrt" => K::Rsqrt,
        "sqrt" => K::Sqrt,
        "setp" => {
            o.cmp = CMP.iter().position(|c| *c == p[1]).unwrap() as u8;
            o.flag = if has("and") {
                1
            } else if has("or") {
                2
            } else {
                0
            };
            K::Setp
        }
        "cvt" if tys[0] == T::BF16x2 || tys[0] == T::F16x2 => K::CvtPack,
        "cvt" => {
            o.flag = if has("rzi") {
                1
            } else if has("rni") {
                2
            } else if has("rmi") {
                3
            } else if has("rpi") {
                4
            } else {
                0
            };
            K::Cvt
        }
        "cvta" => {
            o.flag = has("to") as u8;
            K::Cvta
        }
        "bar" | "barrier" if has("warp") => K::BarWarp,
        "barrier" if has("cluster") => {
            if has("arrive") {
                K::ClusterArrive
            } else {
                K::ClusterWait
            }
        }
        "bar" | "barrier" => {
            o.flag = has("arrive") as u8;
            K::Bar
        }
        "mapa" => K::Mapa,
        "shfl" => {
            o.flag = ["bfly", "down", "up", "idx"].iter().position(|x| has(x)).unwrap() as u8;
            K::Shfl
        }
        "vote" => {
            assert!(has("sync") && has("ballot"), "vote not supported: {s}");
            K::Vote
        }
        "elect" => K::Elect,
        "atom" | "red" => {
            assert!(has("add") && matches!(o.t, T::U(4 | 8)), "atomic not supported: {s}");
            o.flag = (p[0] == "red") as u8;
            K::Atom
        }
        "mma" => {
            let shape = p.iter().position(|x| x.starts_with("m16n8k")).unwrap();
            let k = p[shape][6..].parse().unwrap();
            let kind = (p[shape + 3], p[shape + 4], p[shape + 5], p[shape + 6]);
            assert!((p[shape + 1], p[shape + 2]) == ("row", "col") && !has("satfinite"));
            o.t = match (k, kind) {
                (16, ("f32", "bf16", "bf16", "f32")) => T::BF16,
                (16, ("f32", "f16", "f16", "f32")) => T::F16,
                (8, ("f32", "tf32", "tf32", "f32")) => T::F32,
                (32, ("f32", "e4m3", "e4m3", "f32")) => T::E4M3,
                (32, ("s32", "s8", "s8", "s32")) => T::S(1),
                (32, ("s32", "u8", "s8", "s32")) => T::U(1),
                _ => panic!("mma not supported: {s}"),
            };
            K::Mma
        }
        "ldmatrix" => {
            o.n = if has("x4") {
                4
            } else if has("x2") {
                2
            } else {
                1
            };
            o.flag = has("trans") as u8;
            K::Ldmatrix
        }
        "cp" if has("commit_group") => K::CpCommit,
        "cp" if has("wait_group") => K::CpWait,
        "cp" if has("wait_all") => K::CpWaitAll,
        "cp" if has("tensor") => {
            assert!(!has("bulk_group") && ["1d", "2d", "3d", "4d"].into_iter().any(has), "copy not supported: {s}");
            o.flag = has("multicast::cluster") as u8;
            K::Tma
        }
        "cp" if has("bulk") => {
            assert!(
                has("shared::cluster") && has("shared::cta") && has("mbarrier::complete_tx::bytes"),
                "copy not supported: {s}"
            );
            K::CopyThere
        }
        "cp" => K::CpAsync,
        "mbarrier" => match p[1] {
            "init" => K::MbInit,
            "arrive" if has("expect_tx") => K::MbExpect,
            "arrive" => K::MbArrive,
            "try_wait" | "test_wait" => {
                assert!(has("parity"));
                K::MbTry
            }
            x => panic!("mbarrier.{x}"),
        },
        "wgmma" if p[1] == "mma_async" => {
            let sh = p.iter().find(|x| x.starts_with("m64n")).unwrap();
            let (n, k) = sh[4..].split_once('k').unwrap();
            o.m = [64, n.parse().unwrap(), k.parse().unwrap()];
            o.t = *tys.last().unwrap();
            assert!(k == if o.t == T::E4M3 { "32" } else { "16" }, "product not supported: {s}");
            K::Wgmma
        }
        "wgmma" if p[1] == "fence" => K::WgFence,
        "wgmma" if p[1] == "commit_group" => K::WgCommit,
        "wgmma" if p[1] == "wait_group" => K::WgWait,
        "setmaxnreg" => K::Registers,
        "griddepcontrol" if has("wait") => K::Waits,
        "griddepcontrol" => K::LetsNext,
        "fence" | "membar" => K::Nop,
        _ => panic!("opcode not supported: {s}"),
    };
    let cut = o.k == K::Add && o.t == T::F32 && has("rz");
    assert!((!has("rz") || cut) && !has("rp"), "rounding not supported: {s}");
    if o.k == K::Cvt && has("sat") {
        assert!(o.t == T::F32 && o.st == T::F32, "saturation not supported: {s}");
        o.flag = 5;
    }
    let flags =
        matches!(o.k, K::Fma | K::Add | K::Sub | K::Mul | K::Ex2 | K::Lg2 | K::Rcp | K::Rsqrt | K::Sqrt | K::Div);
    if flags && o.t == T::F32 {
        assert!(!has("rm") || o.k == K::Fma, "rounding not supported: {s}");
        o.flag = if cut {
            3
        } else if has("rm") {
            2
        } else {
            has("ftz") as u8
        };
    }
    o
}

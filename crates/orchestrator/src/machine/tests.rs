mod cases;
mod laws;
mod world;


mod resource;

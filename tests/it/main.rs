mod resource;

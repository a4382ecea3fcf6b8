"""What a GPU does with this project, in nine minutes: `make gpu`."""

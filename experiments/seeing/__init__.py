"""What a trained network has learnt: measures and pictures, one small module each."""

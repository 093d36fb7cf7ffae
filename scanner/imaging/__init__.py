"""Operations on image batches: SSIM, resampling, registration, augmentation."""
